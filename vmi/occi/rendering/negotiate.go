package rendering

import (
	"mime"
	"strconv"
	"strings"
)

// Negotiate picks the media type of an answer from the request's Accept fields (RFC 9110,
// section 12.5.1): the one of ours that is wanted most, and of equally wanted ones the
// more exactly named, then the earlier of All. Nothing named, or "*/*", means text/plain.
// It is false where none of ours is wanted.
func Negotiate(accept []string) (Media, bool) {
	header := strings.Join(accept, ",")
	if strings.TrimSpace(header) == "" {
		return Plain, true
	}
	var best Media
	bestQ, bestExact := 0.0, 0
	for _, m := range All {
		q, exact := quality(header, string(m))
		if q > bestQ || q == bestQ && q > 0 && exact > bestExact {
			best, bestQ, bestExact = m, q, exact
		}
	}
	return best, best != ""
}

// quality of a media type under an Accept header, by the most exact range that has it:
// 3 for itself, 2 for "type/*", 1 for "*/*".
func quality(header, m string) (q float64, exact int) {
	kind, _, _ := strings.Cut(m, "/")
	for r := range strings.SplitSeq(header, ",") {
		name, params, err := mime.ParseMediaType(r)
		if err != nil {
			continue
		}
		n := 0
		switch name {
		case m:
			n = 3
		case kind + "/*":
			n = 2
		case "*/*":
			n = 1
		}
		if n <= exact {
			continue
		}
		q, exact = 1, n
		if text, ok := params["q"]; ok {
			if q, err = strconv.ParseFloat(text, 64); err != nil || !(q >= 0 && q <= 1) {
				q = 0
			}
		}
	}
	return q, exact
}
