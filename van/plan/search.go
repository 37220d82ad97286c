package plan

import "strings"

// Search is the list of domains under which a guest looks for short names, for a network of
// a domain: that one, "web-1.web", and the one above it, "web-1.web.shop".
func Search(domain string) []string {
	domain = strings.TrimSuffix(domain, ".")
	if domain == "" {
		return nil
	}
	list := []string{domain}
	if _, above, has := strings.Cut(domain, "."); has && strings.Contains(above, ".") {
		list = append(list, above)
	}
	return list
}
