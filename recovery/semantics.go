package recovery

import (
	"fmt"
	"slices"
	"strings"
)

// Semantics is the rule set that an application sees when it meets poison: one
// row of the table below.
type Semantics struct {
	Name    string
	Recover bool   // reads get all readable bytes and zeros, writes and fallocate reinitialize; false: the medium's own errors
	From    string // where the rules come from
}

// semantics is the table of rule sets. It never changes.
var semantics = []Semantics{
	{Name: "recover", Recover: true, From: "RWF_RECOVER_DATA as proposed on linux-fsdevel, 2021-09-27, made implicit"},
	{Name: "strict", From: "Linux ≥ 5.19, dax_recovery_write"},
}

// later are rule sets of the design that this version has not.
var later = []string{"prefix", "zeroinit", "punch"}

// SemanticsByName finds a rule set; the error says which there are.
func SemanticsByName(name string) (Semantics, error) {
	var names []string
	for _, s := range semantics {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	if slices.Contains(later, name) {
		return Semantics{}, fmt.Errorf("semantics %q is not in this version; there are: %s", name, strings.Join(names, ", "))
	}
	return Semantics{}, fmt.Errorf("no semantics %q; there are: %s", name, strings.Join(names, ", "))
}
