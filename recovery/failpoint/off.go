//go:build !failpoints

package failpoint

// Enabled says whether there are failpoints in this build.
const Enabled = false

// Points are nothing in this build.
type Points struct{}

// Hit does nothing.
func (*Points) Hit(Step) {}
