package config

import (
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes, written with a binary unit: "8Mi" (or "8MiB").
type Size int64

// ErrBadSize is returned by ParseSize.
var ErrBadSize = errors.New("config: not a size")

// sizeUnits from large to small, so that String finds the largest that divides.
var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"Pi", 1 << 50}, {"Ti", 1 << 40}, {"Gi", 1 << 30}, {"Mi", 1 << 20}, {"Ki", 1 << 10}, {"B", 1},
}

// ParseSize reads a whole number with a binary unit: B, Ki, Mi, Gi, Ti, Pi, each
// also with a B behind. Only 0 needs no unit. Decimal units (10G) are refused: what is
// meant by them differs from tool to tool. The result is never negative.
func ParseSize(s string) (Size, error) {
	if s == "0" {
		return 0, nil
	}
	digits := strings.TrimLeft(s, "0123456789")
	num, unit := s[:len(s)-len(digits)], digits
	if num == "" {
		return 0, fmt.Errorf("%w: %q: write a whole number and a unit, as in 8Mi or 2GiB", ErrBadSize, s)
	}
	for _, u := range sizeUnits {
		if unit != u.name && (u.bytes == 1 || unit != u.name+"B") {
			continue
		}
		n, err := strconv.ParseInt(num, 10, 64)
		if err != nil || n > math.MaxInt64/u.bytes {
			return 0, fmt.Errorf("%w: %q is more than 8 EiB", ErrBadSize, s)
		}
		return Size(n * u.bytes), nil
	}
	if unit == "" {
		return 0, fmt.Errorf("%w: %q has no unit: write %sB, %sMi or %sGi", ErrBadSize, s, s, s, s)
	}
	return 0, fmt.Errorf("%w: %q: unknown unit %q, use one of B, Ki, Mi, Gi, Ti, Pi", ErrBadSize, s, unit)
}

// String writes s with the largest unit that divides it. ParseSize is its inverse.
func (s Size) String() string {
	if s == 0 {
		return "0"
	}
	for _, u := range sizeUnits {
		if int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10) + "B" // not reached: 1 divides
}

// durationText writes d without the zero parts that time.Duration.String leaves: 1m30s, not 1m30.0s; 24h, not 24h0m0s.
func durationText(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
