package httpapi

import (
	"strconv"
	"strings"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Match is the If-Match header for a version of an object; empty for 0, which is any.
func Match(version uint64) string {
	if version == 0 {
		return ""
	}
	return strconv.Quote(strconv.FormatUint(version, 10))
}

// ParseMatch reads an If-Match header: one strong entity tag, whose text is a version. An
// empty one and "*" are 0: any version.
func ParseMatch(header string) (uint64, error) {
	header = strings.TrimSpace(header)
	if header == "" || header == "*" {
		return 0, nil
	}
	text, quoted := strings.CutPrefix(header, `"`)
	if n, err := strconv.ParseUint(strings.TrimSuffix(text, `"`), 10, 64); err == nil && n > 0 && quoted == strings.HasSuffix(text, `"`) {
		return n, nil
	}
	return 0, fault.New(fault.Malformed, "If-Match %q: want the version of the object in quotes, such as \"7\"", header)
}
