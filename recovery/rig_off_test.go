//go:build !failpoints

package recovery

import "github.com/mendfs/mendfs/recovery/failpoint"

// onStep has no steps to tell of in this build.
func (r *rig) onStep(func(failpoint.Step)) {
	r.t.Helper()
	if !failpoint.Enabled {
		r.t.Skip("this build has no failpoints: go test -tags failpoints, as scripts/test does")
	}
}
