// Package testseed gives tests the seeds of their random numbers.
package testseed

import (
	"hash/fnv"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

// Of returns the seed of a test, and logs how the test is replayed with it. It is always the same for a test of that
// name, so that a change fails for what was changed; other ones are tried with TANDEM_SEED=random, and one with its number.
func Of(t testing.TB) uint64 {
	t.Helper()
	seed := choose(t, os.Getenv("TANDEM_SEED"))
	t.Logf("replay with TANDEM_SEED=%d", seed)
	return seed
}

func choose(t testing.TB, env string) uint64 {
	t.Helper()
	switch env {
	case "":
		h := fnv.New64a()
		h.Write([]byte(t.Name()))
		return h.Sum64()
	case "random":
		return rand.Uint64()
	}
	n, err := strconv.ParseUint(env, 10, 64)
	if err != nil {
		t.Fatalf("TANDEM_SEED is a number or random: %v", err)
	}
	return n
}
