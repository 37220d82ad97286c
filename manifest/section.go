package manifest

import (
	"reflect"
	"slices"
	"strings"

	"github.com/beevik/etree"
)

// Namespaces. Extensions are read under any prefix; children and attributes inside of an
// extension's element are found by their local name alone, as published manifests mix them.
const (
	nsOVF     = "http://schemas.dmtf.org/ovf/envelope/1"
	nsClaudia = "http://schemas.telefonica.com/claudia/ovf"
	nsRASD    = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData"
	nsVSSD    = "http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData"
	prefix    = "rsrvr" // that extensions are written under, as Claudia did
)

// splitUnit is a value that OVF writes as a number in the element and a unit in an attribute.
type splitUnit interface{ split() (number, unit string) }

// readSection fills the field of v that the extension's element stands for. It reports
// whether there is one.
func (x *ovfReader) readSection(e *etree.Element, v reflect.Value, path string) bool {
	if e.NamespaceURI() != nsClaudia {
		return false
	}
	for _, f := range x.layout.of(v.Type()) {
		section, item, isList := strings.Cut(f.ovf, ">")
		if section == "" || section != e.Tag {
			continue
		}
		to, p := v.FieldByIndex(f.index), at(path, f.yaml)
		if _, known := x.report.at[p]; !known {
			x.mark(p, x.at[e])
		}
		switch {
		case isList && to.Kind() == reflect.Slice:
			x.list(e, to, p, item)
		case isList: // a single text in a section of its own
			for _, c := range x.children(e, p, item) {
				x.element(c, to, p, f)
			}
		case !to.IsNil():
			x.bad(p, "a second "+section, "want one")
		default:
			x.element(e, to, p, f)
		}
		return true
	}
	return false
}

// list appends the items of a section.
func (x *ovfReader) list(section *etree.Element, to reflect.Value, path, item string) {
	for _, c := range x.children(section, path, item) {
		e := reflect.New(to.Type().Elem()).Elem()
		x.element(c, e, atIndex(path, to.Len()), field{})
		to.Set(reflect.Append(to, e))
	}
}

// children of a section that are called item; others are mistakes.
func (x *ovfReader) children(section *etree.Element, path, item string) []*etree.Element {
	var list []*etree.Element
	for _, c := range section.ChildElements() {
		switch c.Tag {
		case item:
			list = append(list, c)
		case "Info":
		default:
			x.add(x.at[c], at(path, c.Tag), "", unknown(c.Tag, []string{item}))
		}
	}
	return list
}

// element reads one element into v.
func (x *ovfReader) element(e *etree.Element, v reflect.Value, path string, f field) {
	x.mark(path, x.at[e])
	switch {
	case v.Kind() == reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		x.element(e, v.Elem(), path, f)
	case isLeaf(v.Type()):
		x.leaf(v, textOf(e, v), attribute(e, "unit"), path, f)
	default:
		x.structure(e, v, path)
	}
}

func (x *ovfReader) leaf(v reflect.Value, text, unit, path string, f field) {
	if _, ok := v.Interface().(splitUnit); ok && unit != "" {
		text += " " + unit
	}
	if want := setLeaf(v, text, f.enum); want != "" {
		x.bad(path, quote(text), want)
	}
}

func (x *ovfReader) structure(e *etree.Element, v reflect.Value, path string) {
	fields := x.layout.of(v.Type())
	var attributes, elements []string
	for _, f := range fields {
		switch to := v.FieldByIndex(f.index); {
		case f.text:
			x.leaf(to, textOf(e, to), "", path, f)
		case f.attr != "":
			attributes = append(attributes, f.attr)
			if hasAttribute(e, f.attr) {
				x.attribute(e, f, to, path)
			}
		default:
			elements = append(elements, f.ovf)
		}
	}
	for _, a := range e.Attr {
		if isPlumbing(a) || a.Key == "required" || slices.Index(attributes, a.Key) >= 0 {
			continue
		}
		x.add(x.at[e], at(path, "@"+a.Key), "", unknown(a.Key, attributes))
	}
	seen := map[string]bool{}
	for _, c := range e.ChildElements() {
		i := slices.Index(elements, c.Tag)
		if i < 0 {
			if c.Tag != "Info" {
				x.add(x.at[c], at(path, c.Tag), "", unknown(c.Tag, elements))
			}
			continue
		}
		var f field
		for _, f = range fields {
			if f.ovf == c.Tag {
				break
			}
		}
		to, p := v.FieldByIndex(f.index), at(path, f.yaml)
		switch {
		case to.Kind() == reflect.Slice:
			item := reflect.New(to.Type().Elem()).Elem()
			x.element(c, item, atIndex(p, to.Len()), f)
			to.Set(reflect.Append(to, item))
		case seen[c.Tag]:
			x.add(x.at[c], p, "a second "+c.Tag, "want one")
		default:
			seen[c.Tag] = true
			x.element(c, to, p, f)
		}
	}
}

// attribute reads the extension's attribute of e that f stands for.
func (x *ovfReader) attribute(e *etree.Element, f field, to reflect.Value, path string) {
	p := at(path, f.yaml)
	x.mark(p, x.at[e])
	x.leaf(to, attribute(e, f.attr), "", p, f)
	if f.not {
		to.SetBool(!to.Bool())
	}
}

// isPlumbing are attributes that belong to XML and not to the manifest.
func isPlumbing(a etree.Attr) bool {
	return a.Space == "xmlns" || a.Space == "xml" || a.Space == "" && a.Key == "xmlns" ||
		a.NamespaceURI() == "http://www.w3.org/2001/XMLSchema-instance"
}

// attribute of e by its local name, under any prefix; empty when there is none.
func attribute(e *etree.Element, key string) string {
	for _, a := range e.Attr {
		if a.Key == key && !isPlumbing(a) {
			return a.Value
		}
	}
	return ""
}

func hasAttribute(e *etree.Element, key string) bool {
	for _, a := range e.Attr {
		if a.Key == key && !isPlumbing(a) {
			return true
		}
	}
	return false
}

// textOf an element: as it is for a text that says so, else without the white space that
// indentation puts around it.
func textOf(e *etree.Element, v reflect.Value) string {
	if v.Kind() == reflect.String && e.SelectAttrValue("xml:space", "") == "preserve" {
		return e.Text()
	}
	return strings.TrimSpace(e.Text())
}

// writeSections adds an element for each extension field of v that is set, and an
// attribute for each that is one.
func writeSections(to *etree.Element, v reflect.Value) {
	for _, f := range fieldsOf(v.Type()) {
		x := v.FieldByIndex(f.index)
		if f.attr != "" && !x.IsZero() {
			to.CreateAttr(prefix+":"+f.attr, leafText(x))
		}
		section, item, isList := strings.Cut(f.ovf, ">")
		if section == "" || x.IsZero() {
			continue
		}
		e := to.CreateElement(prefix + ":" + section)
		info(e, infos[section])
		switch {
		case isList && x.Kind() == reflect.Slice:
			for i := range x.Len() {
				writeElement(e, item, x.Index(i))
			}
		case isList:
			writeElement(e, item, x)
		default:
			writeStructure(e, x.Elem())
		}
	}
}

func writeElement(to *etree.Element, name string, v reflect.Value) {
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	e := to.CreateElement(prefix + ":" + name)
	if !isLeaf(v.Type()) {
		writeStructure(e, v)
		return
	}
	if s, ok := v.Interface().(splitUnit); ok {
		number, unit := s.split()
		e.CreateAttr("unit", unit)
		e.SetText(number)
		return
	}
	setText(e, leafText(v))
}

func writeStructure(e *etree.Element, v reflect.Value) {
	for _, f := range fieldsOf(v.Type()) {
		x := v.FieldByIndex(f.index)
		switch {
		case f.text:
			setText(e, leafText(x))
		case x.IsZero():
		case f.not:
			e.CreateAttr(f.attr, "false")
		case f.attr != "":
			e.CreateAttr(f.attr, leafText(x))
		case x.Kind() == reflect.Slice:
			for i := range x.Len() {
				writeElement(e, f.ovf, x.Index(i))
			}
		default:
			writeElement(e, f.ovf, x)
		}
	}
}

func setText(e *etree.Element, text string) {
	if text != strings.TrimSpace(text) {
		e.CreateAttr("xml:space", "preserve")
	}
	e.SetText(text)
}

// infos are what the Info element of each extension says, which OVF wants for readers
// that do not know the section.
var infos = map[string]string{
	"KPISection":                  "Measurements that have a name",
	"RuleSection":                 "Rules of a trigger and an action",
	"DeploymentSection":           "Where in the world it may run",
	"SitesSection":                "Sites that it may run at, and which comes first",
	"AvailabilitySection":         "Availability that is promised",
	"PerformanceObjectiveSection": "Ranges of measurements that are promised",
	"RestartTimeSection":          "Time in which a lost replica is back",
	"OfferSection":                "Offer that sites are asked for",
	"ContractSection":             "Contract that the service runs under",
	"PortSection":                 "Ports that it answers on",
	"TagSection":                  "Labels",
	"RawSection":                  "Data for a hypervisor's driver",
	"AccessSection":               "Keys that may log in",
	"UserDataSection":             "Data for cloud-init",
	"SoftwareSection":             "Software that is installed at the first boot",
	"ElasticArraySection":         "Rules that keep a measurement near a quota",
	"CooldownSection":             "Pauses after a change of size",
	"ScheduleSection":             "Numbers of replicas at some hours",
	"UpdateSection":               "How replicas are replaced",
	"ReliabilitySection":          "Checkpoints, what a restart starts from, heartbeat",
	"MetricsSection":              "Where its guests tell their measurements",
	"LoadBalancerSection":         "How requests are spread",
	"FirewallSection":             "Traffic that is let through",
	"DiskMappingSection":          "Storage that disks are put on",
	"AspectsSection":              "What the site takes care of",
	"AffinitySection":             "What runs together and what apart",
	"StandbySection":              "Sites that can go on with it when its own is lost",
}

func info(e *etree.Element, text string) {
	e.CreateElement("Info").SetText(text)
}
