package main

import (
	"math"
	"slices"
)

// median of the numbers that are there; NaN of none.
func median(all []float64) float64 {
	v := slices.DeleteFunc(slices.Clone(all), math.IsNaN)
	if len(v) == 0 {
		return math.NaN()
	}
	slices.Sort(v)
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// ratio is how much faster than its base something is: the median of the ratios within
// each round. NaN stands for a measurement that is not there.
func ratio(base, seconds []float64) float64 {
	var all []float64
	for i := range min(len(base), len(seconds)) {
		all = append(all, base[i]/seconds[i])
	}
	return median(all)
}
