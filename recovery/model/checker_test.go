package model

import (
	"fmt"
	"strings"
)

// emit hands a successor of a state to the checker: who did what, and what came
// of it.
type emit func(who, what string, next state)

// visited is a state in the order of discovery, and how it was reached.
type visited struct {
	state
	from      int32 // index of the state before; -1 for an initial one
	who, what string
}

// result is what an exploration found.
type result struct {
	states int
	steps  map[string]bool // all that were made
	broken string          // the invariant; empty if all hold everywhere
	trace  []string        // the shortest way to where it is broken
}

func (r result) String() string {
	return fmt.Sprintf("%s\n%s", r.broken, strings.Join(r.trace, "\n"))
}

// explore visits every state that can be reached, breadth first, up to the first
// that breaks an invariant: no shorter way leads to one.
func explore(w *world) result {
	nodes := []visited{{state: w.initial(), from: -1}}
	seen := map[state]struct{}{nodes[0].state: {}}
	steps := map[string]bool{}
	for at := 0; at < len(nodes); at++ {
		here, moves := nodes[at].state, 0
		if why := w.broken(&here); why != "" {
			return result{len(nodes), steps, why, trace(nodes, at)}
		}
		w.successors(here, func(who, what string, next state) {
			moves++
			if _, ok := seen[next]; ok {
				return
			}
			seen[next] = struct{}{}
			steps[what] = true
			nodes = append(nodes, visited{next, int32(at), who, what})
		})
		if moves == 0 && !w.finished(&here) {
			return result{len(nodes), steps, "I7: nobody can go on, and somebody is not done", trace(nodes, at)}
		}
	}
	return result{states: len(nodes), steps: steps}
}

// trace is the steps from the start to a state.
func trace(nodes []visited, at int) []string {
	var steps []string
	for ; at >= 0; at = int(nodes[at].from) {
		n := &nodes[at]
		steps = append(steps, fmt.Sprintf("%-9s %-42s %s", n.who, n.what, n.state.brief()))
	}
	for i, j := 0, len(steps)-1; i < j; i, j = i+1, j-1 {
		steps[i], steps[j] = steps[j], steps[i]
	}
	for i := range steps {
		steps[i] = fmt.Sprintf("%3d  %s", i, steps[i])
	}
	return steps
}
