package monitor

import (
	"strings"

	"github.com/reservoir-cloud/reservoir/vee"
)

// Labels that a subject becomes, in every series.
const (
	LabelName      = "__name__" // the field
	LabelSite      = "site"     // that the subject belongs to; of a VEE the one it was made by
	LabelHost      = "host"     // of a host's own series alone
	LabelCustomer  = "customer"
	LabelService   = "service"
	LabelComponent = "component"
	LabelReplica   = "replica"
	LabelVEE       = "vee"
)

// Subject is whom a measurement is about: a site, a host of it, a customer's service, a
// component of that, or one VEE. It is comparable, and its FQN plus "." plus the field is
// the FQN of a measurement (seed 5, section 2.7.4.1).
type Subject struct {
	Site      string
	Host      string // nothing below it is set
	Customer  string
	Service   string // name, or of a VEE without a service its group
	Component string
	Replica   string // number, in decimal
	VEE       vee.ID // tells replicas of the same number from one another
}

// HostSubject is a host's.
func HostSubject(site, host string) Subject { return Subject{Site: site, Host: host} }

// ServiceSubject is a whole service's, for KPIs that are of no single replica.
func ServiceSubject(site, customer, service string) Subject {
	return Subject{Site: site, Customer: customer, Service: service}
}

// VEESubject is that of a VEE, from what its VEE Manager has on record. The FQN prefix is
// opaque there and came from whoever asked for the VEE: it names the service and replica,
// but only where it says the same customer.
func VEESubject(site string, id vee.ID, customer, group, fqnPrefix string) Subject {
	if s, rest, ok := ParseFQN(fqnPrefix); ok && rest == "" && s.Customer == customer && s.Host == "" {
		s.VEE = id
		return s
	}
	return Subject{Site: site, Customer: customer, Service: group, VEE: id}
}

// FQN of the subject: the prefix of its measurements' names.
func (s Subject) FQN() string {
	var b strings.Builder
	b.WriteString(s.Site)
	for _, part := range [...]struct{ word, name string }{
		{"hosts", s.Host}, {"customers", s.Customer}, {"services", s.Service}, {"vees", s.Component}, {"replicas", s.Replica},
	} {
		if part.name != "" {
			b.WriteString("." + part.word + "." + part.name)
		}
	}
	return b.String()
}

// ParseFQN reads the subject off an FQN; rest is what comes after it, the measure. The VEE
// is not part of an FQN.
func ParseFQN(fqn string) (s Subject, rest string, ok bool) {
	s.Site, rest, _ = strings.Cut(fqn, ".")
	for _, part := range [...]struct {
		word string
		to   *string
	}{{"hosts", &s.Host}, {"customers", &s.Customer}, {"services", &s.Service}, {"vees", &s.Component}, {"replicas", &s.Replica}} {
		after, found := strings.CutPrefix(rest, part.word+".")
		if !found {
			continue
		}
		if *part.to, rest, _ = strings.Cut(after, "."); *part.to == "" {
			return Subject{}, "", false
		}
	}
	orphan := s.Service != "" && s.Customer == "" || s.Component != "" && s.Service == "" || s.Replica != "" && s.Component == "" || s.Host != "" && s.Customer != ""
	return s, rest, s.Site != "" && !orphan
}

// Labels of the subject's series but for the name, by name, those that are empty left out.
func (s Subject) Labels() map[string]string {
	all := map[string]string{
		LabelSite: s.Site, LabelHost: s.Host, LabelCustomer: s.Customer, LabelService: s.Service,
		LabelComponent: s.Component, LabelReplica: s.Replica, LabelVEE: string(s.VEE),
	}
	for k, v := range all {
		if v == "" {
			delete(all, k)
		}
	}
	return all
}

// reserved prefixes of fields, by the kind that may use them.
var reserved = map[string]Kind{"host_": HostKind, "vee_": VEEKind, "kpi_": DerivedKind, "site_": SiteKind, "reservoir_": SiteKind}

// maxField bounds a field's name, in bytes.
const maxField = 128

// ValidField reports whether measurements of that kind may have a field of that name: a
// Prometheus metric name without colons, of at most 128 bytes, that starts neither with two
// underscores nor as those of another kind do.
func ValidField(k Kind, name string) bool {
	if name == "" || len(name) > maxField || name != FieldOf(name) || strings.HasPrefix(name, "__") {
		return false
	}
	for prefix, of := range reserved {
		if k != of && strings.HasPrefix(name, prefix) {
			return false
		}
	}
	return true
}

// FieldOf makes a field of what a service calls a KPI: "queue.size" becomes "queue_size".
func FieldOf(name string) string {
	field := strings.Map(func(r rune) rune {
		if r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, name)
	if field != "" && field[0] >= '0' && field[0] <= '9' {
		field = "_" + field
	}
	return field
}
