package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// clockTick is the unit of the times in /proc/PID/stat, per second; the same on every Linux that Go runs on.
const clockTick = 100

// cpuSeconds returns the user and system time that processes have used.
func cpuSeconds(pids []int) float64 {
	var total float64
	for _, pid := range pids {
		data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		_, rest, _ := strings.Cut(string(data), ") ")
		f := strings.Fields(rest)
		if len(f) < 13 {
			continue // it has ended
		}
		user, _ := strconv.ParseFloat(f[11], 64)
		system, _ := strconv.ParseFloat(f[12], 64)
		total += (user + system) / clockTick
	}
	return total
}
