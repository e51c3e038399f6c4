package config

import (
	"fmt"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Effective returns the configuration as key path -> text, for the one log line
// at start. It has no secrets: passwords are read from files only by Etcd.Password, and
// a password written into a URL is refused by Validate.
func (c *Config) Effective() map[string]string {
	out := map[string]string{}
	flatten("", reflect.ValueOf(c).Elem(), func(key string, v reflect.Value) { out[key] = valueText(v) })
	return out
}

// flatten calls f for every leaf under v, in order. An empty list is a leaf.
func flatten(key string, v reflect.Value, f func(key string, v reflect.Value)) {
	switch {
	case v.Kind() == reflect.Struct:
		for i, name := range keysOf(v.Type()) {
			flatten(join(key, name), v.Field(i), f)
		}
	case v.Kind() == reflect.Slice && v.Len() > 0:
		for i := range v.Len() {
			flatten(fmt.Sprintf("%s[%d]", key, i), v.Index(i), f)
		}
	default:
		f(key, v)
	}
}

func valueText(v reflect.Value) string {
	switch x := v.Interface().(type) {
	case time.Duration:
		return durationText(x)
	case Size:
		return x.String()
	case map[string]string:
		var pairs []string
		for _, k := range slices.Sorted(maps.Keys(x)) {
			pairs = append(pairs, k+": "+x[k])
		}
		return "{" + strings.Join(pairs, ", ") + "}"
	}
	if v.Kind() == reflect.Slice {
		return "[]"
	}
	return fmt.Sprint(v.Interface())
}

// Password reads the password for etcd, "" if none is configured. The first line of the file counts.
func (e *Etcd) Password() (string, error) {
	if e.PasswordFile == "" {
		return "", nil
	}
	fi, err := os.Stat(e.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("config: cannot read kvdb.etcd.passwordFile: %w", err)
	}
	if fi.Mode().Perm()&0o007 != 0 {
		return "", fmt.Errorf("%w: kvdb.etcd.passwordFile %s can be read by everybody: chmod o= it", ErrInvalid, e.PasswordFile)
	}
	data, err := os.ReadFile(e.PasswordFile)
	if err != nil {
		return "", fmt.Errorf("config: cannot read kvdb.etcd.passwordFile: %w", err)
	}
	line, _, _ := strings.Cut(string(data), "\n")
	line = strings.TrimSuffix(line, "\r")
	if line == "" {
		return "", fmt.Errorf("%w: the first line of kvdb.etcd.passwordFile %s is empty", ErrInvalid, e.PasswordFile)
	}
	return line, nil
}
