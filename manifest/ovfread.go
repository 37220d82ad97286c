package manifest

import (
	"fmt"
	"math"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/beevik/etree"

	"github.com/reservoir-cloud/reservoir/vee"
)

// ovfReader maps what the OVF standard (DMTF DSP0243 1.1) lays out onto the model.
type ovfReader struct {
	*report
	layout layout
	at     map[*etree.Element]place
	disks  map[string]*etree.Element // by ovf:diskId
}

// readOVF decodes an envelope into s and reports whether it could be read at all.
func readOVF(r *report, text []byte, s *Service) bool {
	d, ok := readXML(r, text)
	if !ok {
		return false
	}
	x := &ovfReader{report: r, layout: layout{}, at: d.at, disks: map[string]*etree.Element{}}
	if d.root.Tag != "Envelope" || d.root.NamespaceURI() != nsOVF {
		x.add(x.at[d.root], d.root.FullTag(), "namespace "+quote(d.root.NamespaceURI()), "want an OVF 1.x Envelope in namespace "+nsOVF)
		return false
	}
	var content *etree.Element
	var sections []*etree.Element
	for _, e := range d.root.ChildElements() {
		switch name(e) {
		case "References":
			x.references(e, s)
		case "DiskSection":
			x.diskSection(e)
		case "NetworkSection":
			x.networkSection(e, s)
		case "VirtualSystem", "VirtualSystemCollection":
			if content != nil {
				x.add(x.at[e], e.Tag, "a second one", "want one VirtualSystem or VirtualSystemCollection in the Envelope")
				continue
			}
			content = e
		default:
			sections = append(sections, e)
		}
	}
	switch {
	case content == nil:
		x.add(x.at[d.root], "Envelope", "no content", "want a VirtualSystem or a VirtualSystemCollection")
		return false
	case content.Tag == "VirtualSystem":
		x.identify(content, &s.Name, "service")
		x.component(content, s)
	default:
		x.collection(content, s)
	}
	for _, e := range sections { // last: they name components
		x.serviceSection(e, s, "envelope")
	}
	return true
}

// name of an element of the OVF namespace; of others it is never one that we know.
func name(e *etree.Element) string {
	if e.NamespaceURI() == nsOVF {
		return e.Tag
	}
	return "{}" + e.Tag
}

func (x *ovfReader) identify(e *etree.Element, to *string, path string) {
	x.mark(path, x.at[e])
	*to = strings.TrimSpace(attribute(e, "id"))
}

func (x *ovfReader) references(e *etree.Element, s *Service) {
	for _, c := range e.ChildElements() {
		if name(c) != "File" {
			x.add(x.at[c], "References."+c.Tag, "", unknown(c.Tag, []string{"File"}))
			continue
		}
		path := atIndex("files", len(s.Files))
		x.mark(path, x.at[c])
		f := File{ID: attribute(c, "id"), Href: attribute(c, "href"), Compression: attribute(c, "compression")}
		if text := attribute(c, "digest"); text != "" {
			x.leaf(reflect.ValueOf(&f.Digest).Elem(), text, "", path+".digest", field{})
		}
		if text := attribute(c, "size"); text != "" {
			x.size(&f.Size, text, "byte", path+".size")
		}
		if hasAttribute(c, "chunkSize") {
			x.bad(path+".chunkSize", quote(attribute(c, "chunkSize")), "want the file in one piece")
		}
		s.Files = append(s.Files, f)
	}
}

func (x *ovfReader) size(to *vee.Bytes, amount, unit, path string) {
	b, err := sizeIn(amount, unit)
	if err != nil {
		x.bad(path, quote(strings.TrimSpace(amount+" "+unit)), err.Error())
	}
	*to = b
}

func (x *ovfReader) diskSection(e *etree.Element) {
	for _, c := range e.ChildElements() {
		switch id := attribute(c, "diskId"); {
		case name(c) == "Info":
		case name(c) != "Disk":
			x.add(x.at[c], "DiskSection."+c.Tag, "", unknown(c.Tag, []string{"Disk"}))
		case id == "" || x.disks[id] != nil:
			x.add(x.at[c], "DiskSection.Disk", "diskId "+quote(id), "want one that no other disk has")
		default:
			x.disks[id] = c
		}
	}
}

func (x *ovfReader) networkSection(e *etree.Element, s *Service) {
	for _, c := range e.ChildElements() {
		switch name(c) {
		case "Info":
		case "Network":
			path := atIndex("networks", len(s.Networks))
			x.mark(path, x.at[c])
			n := Network{Name: attribute(c, "name"), Description: childText(c, "Description")}
			if hasAttribute(c, "public") {
				x.leaf(reflect.ValueOf(&n.Public).Elem(), attribute(c, "public"), "", path+".public", field{})
			}
			if hasAttribute(c, "access") {
				x.leaf(reflect.ValueOf(&n.Access).Elem(), attribute(c, "access"), "", path+".access", field{})
			}
			n.Subnet = attribute(c, "subnet")
			if hasAttribute(c, "ipv6") {
				x.leaf(reflect.ValueOf(&n.IPv6).Elem(), attribute(c, "ipv6"), "", path+".ipv6", field{})
			}
			if hasAttribute(c, "mtu") {
				x.leaf(reflect.ValueOf(&n.MTU).Elem(), attribute(c, "mtu"), "", path+".mtu", field{})
			}
			s.Networks = append(s.Networks, n)
		default:
			x.add(x.at[c], "NetworkSection."+c.Tag, "", unknown(c.Tag, []string{"Network"}))
		}
	}
}

func (x *ovfReader) collection(e *etree.Element, s *Service) {
	x.identify(e, &s.Name, "service")
	var startup []*etree.Element
	for _, c := range e.ChildElements() {
		switch name(c) {
		case "VirtualSystem":
			x.component(c, s)
		case "VirtualSystemCollection":
			x.add(x.at[c], "VirtualSystemCollection "+attribute(c, "id"), "inside of another", "want all VirtualSystems in one collection")
		case "StartupSection":
			startup = append(startup, c)
		default:
			x.serviceSection(c, s, "collection")
		}
	}
	for _, c := range startup {
		x.startup(c, s)
	}
}

func (x *ovfReader) serviceSection(e *etree.Element, s *Service, in string) {
	switch name(e) {
	case "Info":
		return
	case "Name":
		if s.Description == "" {
			s.Description = strings.TrimSpace(e.Text())
		}
		return
	case "AnnotationSection":
		s.Description = childText(e, "Annotation")
		return
	case "ProductSection":
		x.product(e, &s.Properties, &s.Products, "")
		return
	}
	if e.NamespaceURI() == nsClaudia && e.Tag == "AffinitySection" {
		x.affinity(e, s)
		return
	}
	if !x.readSection(e, reflect.ValueOf(s).Elem(), "") {
		x.extra(e, &s.Extra, in, e.Tag)
	}
}

func (x *ovfReader) affinity(e *etree.Element, s *Service) {
	for _, c := range e.ChildElements() {
		groups, path := &s.Affinity, "affinity"
		switch c.Tag {
		case "Info":
			continue
		case "AntiAffinity":
			groups, path = &s.AntiAffinity, "antiAffinity"
		case "Affinity":
		default:
			x.add(x.at[c], "AffinitySection."+c.Tag, "", unknown(c.Tag, []string{"Affinity", "AntiAffinity"}))
			continue
		}
		path = atIndex(path, len(*groups))
		x.mark(path, x.at[c])
		g := Group{Scope: Scope(strings.ToLower(attribute(c, "scope")))}
		for _, id := range c.ChildElements() {
			if id.Tag != "VirtualSystemId" {
				x.add(x.at[id], path+"."+id.Tag, "", unknown(id.Tag, []string{"VirtualSystemId"}))
				continue
			}
			x.mark(atIndex(path+".components", len(g.Components)), x.at[id])
			g.Components = append(g.Components, strings.TrimSpace(id.Text()))
		}
		*groups = append(*groups, g)
	}
}

func (x *ovfReader) startup(e *etree.Element, s *Service) {
	for _, c := range e.ChildElements() {
		if name(c) == "Info" {
			continue
		}
		id := attribute(c, "id")
		i := 0
		for ; i < len(s.Components) && s.Components[i].Name != id; i++ {
		}
		switch {
		case name(c) != "Item":
			x.add(x.at[c], "StartupSection."+c.Tag, "", unknown(c.Tag, []string{"Item"}))
			continue
		case i == len(s.Components):
			x.add(x.at[c], "StartupSection.Item", quote(id), unknown(id, s.names()))
			continue
		case s.Components[i].Startup != nil:
			x.add(x.at[c], "StartupSection.Item", "a second one for "+quote(id), "want one")
			continue
		}
		path := atIndex("components", i) + ".startup"
		x.mark(path, x.at[c])
		x.mark(atIndex("components", i)+".startAfter", x.at[c])
		u := &Startup{
			StartAction: attribute(c, "startAction"),
			StopAction:  attribute(c, "stopAction"),
		}
		for key, to := range map[string]any{
			"order": &u.Order, "startDelay": &u.StartDelay, "stopDelay": &u.StopDelay, "waitingForGuest": &u.WaitingForGuest,
		} {
			if hasAttribute(c, key) {
				x.leaf(reflect.ValueOf(to).Elem(), strings.TrimSpace(attribute(c, key)), "", path+"."+key, field{})
			}
		}
		s.Components[i].Startup = u
		s.Components[i].StartAfter = strings.Fields(attribute(c, "after"))
		if len(s.Components[i].StartAfter) == 0 {
			s.Components[i].StartAfter = nil
		}
	}
}

func (x *ovfReader) component(e *etree.Element, s *Service) {
	path := atIndex("components", len(s.Components))
	x.mark(path, x.at[e])
	s.Components = append(s.Components, Component{})
	c := &s.Components[len(s.Components)-1]
	v := reflect.ValueOf(c).Elem()
	preset(v)
	x.identify(e, &c.Name, path+".name")

	attributes := []string{"min", "max", "initial", "lbport"}
	lbport := 0
	for key, to := range map[string]*int{
		"min": &c.Replicas.Min, "max": &c.Replicas.Max, "initial": &c.Replicas.Initial, "lbport": &lbport,
	} {
		if hasAttribute(e, key) {
			where := path + ".replicas." + key
			if key == "lbport" {
				where = path + ".ports[0].port"
			}
			x.leaf(reflect.ValueOf(to).Elem(), strings.TrimSpace(attribute(e, key)), "", where, field{})
		}
	}
	for _, f := range x.layout.of(v.Type()) {
		if f.attr != "" {
			attributes = append(attributes, f.attr)
			if hasAttribute(e, f.attr) {
				x.attribute(e, f, v.FieldByIndex(f.index), path)
			}
		}
	}
	for _, a := range e.Attr {
		if a.NamespaceURI() == nsClaudia && slices.Index(attributes, a.Key) < 0 {
			x.add(x.at[e], path+".@"+a.Key, "", unknown(a.Key, attributes))
		}
	}

	display := ""
	for _, k := range e.ChildElements() {
		switch name(k) {
		case "Info":
		case "Name":
			display = strings.TrimSpace(k.Text())
		case "AnnotationSection":
			c.Description = childText(k, "Annotation")
		case "ProductSection":
			x.product(k, &c.Properties, &c.Products, path)
		case "OperatingSystemSection":
			x.mark(path+".os", x.at[k])
			c.OS = &OS{Version: attribute(k, "version"), Description: childText(k, "Description")}
			x.leaf(reflect.ValueOf(&c.OS.ID).Elem(), attribute(k, "id"), "", path+".os.id", field{})
		case "VirtualHardwareSection":
			x.hardware(k, c, path)
		default:
			if !x.readSection(k, v, path) {
				x.extra(k, &c.Extra, "component", path+"."+k.Tag)
			}
		}
	}
	if c.Description == "" && display != c.Name {
		c.Description = display
	}
	if lbport != 0 {
		switch {
		case len(c.Ports) == 0:
			c.Ports = []Port{{Port: lbport}}
		case c.Ports[0].Port != lbport:
			x.bad(path+".ports[0].port", fmt.Sprintf("lbport %d beside %d", lbport, c.Ports[0].Port), "want the first port of the PortSection")
		}
	}
}

func (x *ovfReader) product(e *etree.Element, properties *[]Property, products *[]Product, path string) {
	p := Product{
		Class: attribute(e, "class"), Instance: attribute(e, "instance"),
		Name: childText(e, "Product"), Vendor: childText(e, "Vendor"),
		Version: childText(e, "Version"), FullVersion: childText(e, "FullVersion"),
		ProductURL: childText(e, "ProductUrl"), VendorURL: childText(e, "VendorUrl"), AppURL: childText(e, "AppUrl"),
	}
	bare := p.isBare()
	base, first := at(path, "properties"), len(*properties)
	if !bare {
		base, first = atIndex(at(path, "products"), len(*products)), 0
		x.mark(base, x.at[e])
		base += ".properties"
	}
	for _, k := range e.ChildElements() {
		if name(k) != "Property" {
			continue // display texts, icons
		}
		where := atIndex(base, first+len(p.Properties))
		x.mark(where, x.at[k])
		y := Property{
			Key: attribute(k, "key"), Value: attribute(k, "value"),
			Type: attribute(k, "type"), Qualifiers: attribute(k, "qualifiers"),
			Label: childText(k, "Label"), Description: childText(k, "Description"),
		}
		for key, to := range map[string]*bool{
			"cloudConfigurable": &y.CloudConfigurable, "userConfigurable": &y.UserConfigurable, "password": &y.Password,
		} {
			if hasAttribute(k, key) {
				x.leaf(reflect.ValueOf(to).Elem(), attribute(k, key), "", where+"."+key, field{})
			}
		}
		if v := child(k, "Value"); v != nil {
			x.add(x.at[v], where+".value", "one for each configuration", "want the attribute value: deployment options are not known")
		}
		p.Properties = append(p.Properties, y)
	}
	if bare {
		*properties = append(*properties, p.Properties...)
		return
	}
	*products = append(*products, p)
}

// isBare reports whether p says nothing but properties.
func (p Product) isBare() bool {
	p.Properties = nil
	return reflect.DeepEqual(p, Product{})
}

// item is one Item of the VirtualHardwareSection: its children by name.
type item struct {
	*etree.Element
	rasd map[string]string
	path string
}

// Resource types of CIM_ResourceAllocationSettingData.
const (
	typeCPU, typeMemory, typeNIC, typeCD, typeDVD, typeDisk = 3, 4, 10, 15, 16, 17
)

// idle are resource types that say nothing to us: controllers and displays, which a driver
// chooses for itself.
var idle = map[int]string{
	1: "other", 5: "IDE controller", 6: "SCSI controller", 7: "FC HBA", 8: "iSCSI HBA", 14: "floppy drive",
	20: "storage controller", 21: "serial port", 22: "parallel port", 23: "USB controller", 24: "graphics", 35: "sound",
}

func (x *ovfReader) hardware(e *etree.Element, c *Component, path string) {
	for _, k := range e.ChildElements() {
		switch name(k) {
		case "Info":
		case "System":
			c.Hypervisor = childText(k, "VirtualSystemType")
			x.mark(path+".hypervisor", x.at[k])
		case "Item":
			x.item(k, c, path)
		default:
			x.extra(k, &c.Extra, "hardware", path+"."+k.Tag)
		}
	}
}

func (x *ovfReader) item(e *etree.Element, c *Component, path string) {
	i := item{e, map[string]string{}, path}
	for _, k := range e.ChildElements() {
		i.rasd[k.Tag] = strings.TrimSpace(k.Text())
	}
	kind, err := strconv.Atoi(i.rasd["ResourceType"])
	if err != nil {
		x.add(x.at[e], path+".Item", "ResourceType "+quote(i.rasd["ResourceType"]), "want the number of a type of resource")
		return
	}
	if hasAttribute(e, "configuration") {
		x.add(x.at[e], path+".Item", "only in configuration "+quote(attribute(e, "configuration")), "want an item for all: deployment options are not known")
		return
	}
	bound := attribute(e, "bound")
	normal := bound == "" || bound == "normal"
	switch {
	case kind == typeCPU && normal:
		x.cpu(i, c)
	case kind == typeCPU && bound == "max":
		x.cpuMax(i, c)
	case kind == typeMemory && (normal || bound == "max"):
		x.memory(i, c, !normal)
	case kind == typeNIC && normal:
		where := atIndex(path+".networks", len(c.NICs))
		x.mark(where, x.at[e])
		c.NICs = append(c.NICs, NIC{
			Network: i.rasd["Connection"], MAC: i.rasd["Address"],
			Target: attribute(e, "target"), Alias: attribute(e, "alias"), Address: attribute(e, "address"),
		})
	case kind == typeDisk && normal, (kind == typeCD || kind == typeDVD) && normal && i.rasd["HostResource"] != "":
		x.disk(i, c, kind != typeDisk)
	case idle[kind] != "" || kind == typeCD || kind == typeDVD || !normal:
		x.keep(e, &c.Extra, "hardware", path+".Item")
	default:
		x.extra(e, &c.Extra, "hardware", fmt.Sprintf("%s.Item of resource type %d", path, kind))
	}
}

func (x *ovfReader) cpu(i item, c *Component) {
	path := i.path + ".cpu"
	x.mark(path, x.at[i.Element])
	if c.CPU.Count != unset {
		x.bad(path, "a second processor item", "want one, with their number in VirtualQuantity")
		return
	}
	x.leaf(reflect.ValueOf(&c.CPU.Count).Elem(), i.rasd["VirtualQuantity"], "", path+".count", field{})
	if w := i.rasd["Weight"]; w != "" {
		x.leaf(reflect.ValueOf(&c.CPU.Weight).Elem(), w, "", path+".weight", field{})
	}
	unit := i.rasd["AllocationUnits"]
	if _, isClock := scale("hertz", unit); !isClock && !strings.HasSuffix(strings.ToLower(unit), "hertz") && !strings.HasSuffix(strings.ToLower(unit), "hz") {
		unit = "MHz"
	}
	for key, to := range map[string]*MHz{"Reservation": &c.CPU.Reservation, "Limit": &c.CPU.Limit} {
		amount := i.rasd[key]
		if amount == "" {
			continue
		}
		f, err := mhzIn(amount, unit)
		if err != nil {
			x.bad(path+"."+strings.ToLower(key), quote(amount+" "+unit), err.Error())
		}
		*to = f
	}
}

func (x *ovfReader) cpuMax(i item, c *Component) {
	path := i.path + ".cpu.max"
	x.mark(path, x.at[i.Element])
	if c.CPU.Max != 0 {
		x.bad(path, "a second item for the most processors", "want one")
		return
	}
	x.leaf(reflect.ValueOf(&c.CPU.Max).Elem(), i.rasd["VirtualQuantity"], "", path, field{})
}

func (x *ovfReader) memory(i item, c *Component, isMax bool) {
	path := i.path + ".memory"
	x.mark(path, x.at[i.Element])
	unit := i.rasd["AllocationUnits"]
	if unit == "" {
		unit = "MB" // as Claudia took it
	}
	to := &c.Memory.Size
	if isMax {
		to, path = &c.Memory.Max, path+".max"
	}
	if *to != 0 {
		x.bad(path, "a second memory item", "want one")
		return
	}
	x.size(to, i.rasd["VirtualQuantity"], unit, path)
}

// hostResource is "ovf:/disk/ID", or as some write it "ovf://disk/ID" and "/disk/ID".
var hostResource = regexp.MustCompile(`^(?:ovf:)?/{1,2}(disk|file)/(.+)$`)

func (x *ovfReader) disk(i item, c *Component, cdrom bool) {
	path := atIndex(i.path+".disks", len(c.Disks))
	x.mark(path, x.at[i.Element])
	m := hostResource.FindStringSubmatch(i.rasd["HostResource"])
	if m == nil {
		x.bad(path, "HostResource "+quote(i.rasd["HostResource"]), "want ovf:/disk/ID or ovf:/file/ID")
		return
	}
	if m[1] == "file" {
		c.Disks = append(c.Disks, Disk{Name: fmt.Sprintf("disk%d", len(c.Disks)), Image: m[2], CDROM: cdrom})
		return
	}
	e := x.disks[m[2]]
	if e == nil {
		x.bad(path, "HostResource "+quote(i.rasd["HostResource"]), "want the diskId of a Disk in the DiskSection")
		return
	}
	d := Disk{
		Name:   strings.TrimPrefix(m[2], c.Name+"-"),
		Image:  attribute(e, "fileRef"),
		Format: attribute(e, "format"),
		Target: attribute(e, "target"),
		CDROM:  cdrom,
	}
	if hasAttribute(e, "persistent") {
		x.leaf(reflect.ValueOf(&d.Persistent).Elem(), attribute(e, "persistent"), "", path+".persistent", field{})
	}
	if hasAttribute(e, "parentRef") {
		x.bad(path, "parentRef "+quote(attribute(e, "parentRef")), "want a disk that stands alone")
	}
	if amount := attribute(e, "capacity"); strings.HasPrefix(amount, "${") {
		x.bad(path+".size", quote(amount), "want a number: a capacity from a property is not known")
	} else if amount != "" {
		unit := attribute(e, "capacityAllocationUnits")
		x.size(&d.Size, amount, unit, path+".size")
	}
	c.Disks = append(c.Disks, d)
}

// extra keeps an element that we do not know if it allows to be ignored, else that is a
// mistake: OVF's default is that it must be understood (DSP0243, section 7.2).
func (x *ovfReader) extra(e *etree.Element, to *[]Extra, in, path string) {
	known := e.NamespaceURI() == nsOVF && (e.Tag == "EulaSection" || e.Tag == "Strings")
	if r := attribute(e, "required"); !known && r != "false" && r != "0" {
		x.add(x.at[e], path, "unknown, and required", `want a known section, or ovf:required="false" to go without it`)
		return
	}
	x.keep(e, to, in, path)
}

func (x *ovfReader) keep(e *etree.Element, to *[]Extra, in, path string) {
	text, ok := canonical(e)
	if !ok {
		x.add(x.at[e], path, "namespace prefix "+quote(text), "want one that is declared")
		return
	}
	*to = append(*to, Extra{In: in, XML: text})
}

func child(e *etree.Element, tag string) *etree.Element {
	for _, c := range e.ChildElements() {
		if c.Tag == tag {
			return c
		}
	}
	return nil
}

func childText(e *etree.Element, tag string) string {
	c := child(e, tag)
	if c == nil {
		return ""
	}
	return textOf(c, reflect.ValueOf(""))
}

// unsetOr gives n, or otherwise when it was never set.
func unsetOr(n, otherwise int) int {
	if n == math.MinInt {
		return otherwise
	}
	return n
}
