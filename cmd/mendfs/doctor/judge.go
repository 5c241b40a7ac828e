package doctor

import (
	"fmt"
	"strings"
)

// judge turns facts into findings, in the order in which people want to know.
func (f *facts) judge() []Finding {
	return []Finding{
		f.judgeKernel(),
		f.judgeFuse(),
		f.judgeNotifications(),
		f.judgePassthrough(),
		f.judgeMounting(),
		f.judgeOverMount(),
		f.judgeHandles(),
		f.judgeLandlock(),

		f.judgeFilesystem(),
		f.judgeQuotas(),
		f.judgeDevice(),
		f.judgeDAX(),
		f.judgeDAXPerFile(),
		f.judgeMapSync(),

		f.judgeBadblocks(),
		f.judgeListChanges(),
		f.judgeOwners(),
		f.judgeMachineCheck(),
		f.judgeSalvage(),
		f.judgeClearing(),
		f.judgeRaw(),
		f.judgeFallocate(),
		f.judgeReflink(),

		f.judgeOtherPaths(),
		f.judgeNamespaces(),
		f.judgeUsers(),
		f.judgeDeviceUsers(),
		f.judgeState(),
		f.judgeStateSpace(),
	}
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// shorten is the first three of names, and how many more there are.
func shorten[T fmt.Stringer](all []T) string {
	var names []string
	for _, one := range all[:min(3, len(all))] {
		names = append(names, one.String())
	}
	if len(all) <= 3 {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names, ", "), len(all)-3)
}
