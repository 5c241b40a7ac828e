//go:build failpoints

package recovery

import "github.com/mendfs/mendfs/recovery/failpoint"

// onStep has fn called at each step of a repair; nil ends it.
func (r *rig) onStep(fn func(failpoint.Step)) { r.engine.at.Set(fn) }
