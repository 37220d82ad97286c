package manifest

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/beevik/etree"

	"github.com/reservoir-cloud/reservoir/vee"
)

// formatQCOW2 is the URI that is written where a disk names no format, which OVF wants.
const formatQCOW2 = "http://www.gnome.org/~markmc/qcow-image-format.html"

// OVF writes the service as an OVF 1.1 envelope.
func (s *Service) OVF() ([]byte, error) {
	if err := s.Validate(); err != nil {
		return nil, fmt.Errorf("write service %s as OVF: %w", s.Name, err)
	}
	w := &ovfWriter{extras: map[*etree.Element]Extra{}}
	doc := etree.NewDocument()
	doc.WriteSettings = writeSettings
	doc.CreateProcInst("xml", `version="1.0" encoding="UTF-8"`)
	env := doc.CreateElement("Envelope")
	env.CreateAttr("xmlns", nsOVF)
	env.CreateAttr("xmlns:ovf", nsOVF)
	env.CreateAttr("xmlns:rasd", nsRASD)
	env.CreateAttr("xmlns:vssd", nsVSSD)
	env.CreateAttr("xmlns:"+prefix, nsClaudia)
	w.references(env, s)
	w.disks(env, s)
	w.networks(env, s)
	w.keep(env, s.Extra, "envelope")
	w.collection(env, s)

	indent := etree.NewIndentSettings()
	indent.Spaces = 2
	indent.PreserveLeafWhitespace = true
	doc.IndentWithSettings(indent)
	if err := w.insertExtras(); err != nil {
		return nil, fmt.Errorf("write service %s as OVF: %w", s.Name, err)
	}
	text, err := doc.WriteToBytes()
	if err != nil {
		return nil, fmt.Errorf("write service %s as OVF: %w", s.Name, err)
	}
	return text, nil
}

type ovfWriter struct {
	extras map[*etree.Element]Extra // what stands in for each until indentation is done
}

// keep holds the place of each Extra that belongs in: its own white space is content.
func (w *ovfWriter) keep(to *etree.Element, list []Extra, in string) {
	for _, x := range list {
		if x.In == in {
			w.extras[to.CreateElement("extra")] = x
		}
	}
}

func (w *ovfWriter) insertExtras() error {
	for holder, x := range w.extras {
		e, _, err := readExtra(x.XML)
		if err != nil {
			return err
		}
		parent, i := holder.Parent(), holder.Index()
		parent.RemoveChildAt(i)
		parent.InsertChildAt(i, e)
	}
	return nil
}

// attr adds an attribute of the OVF namespace unless it is empty.
func attr(e *etree.Element, key, value string) {
	if value != "" {
		e.CreateAttr(key, value)
	}
}

func ifTrue(b bool) string {
	if b {
		return "true"
	}
	return ""
}

func (w *ovfWriter) references(env *etree.Element, s *Service) {
	refs := env.CreateElement("References")
	listed := map[string]bool{}
	for _, f := range s.Files {
		listed[f.ID] = true
		e := refs.CreateElement("File")
		e.CreateAttr("ovf:id", f.ID)
		e.CreateAttr("ovf:href", f.Href)
		if f.Size != 0 {
			e.CreateAttr("ovf:size", strconv.FormatInt(int64(f.Size), 10))
		}
		attr(e, "ovf:compression", f.Compression)
		attr(e, prefix+":digest", string(f.Digest))
	}
	for _, c := range s.Components {
		for _, d := range c.Disks {
			if d.Image != "" && !listed[d.Image] {
				listed[d.Image] = true
				e := refs.CreateElement("File")
				e.CreateAttr("ovf:id", d.Image)
				e.CreateAttr("ovf:href", d.Image)
			}
		}
	}
}

func (w *ovfWriter) disks(env *etree.Element, s *Service) {
	section := env.CreateElement("DiskSection")
	info(section, "Virtual disks")
	for _, c := range s.Components {
		for _, d := range c.Disks {
			e := section.CreateElement("Disk")
			e.CreateAttr("ovf:diskId", c.Name+"-"+d.Name)
			attr(e, "ovf:fileRef", d.Image)
			if d.Size != 0 {
				amount, unit := sizeOut(d.Size)
				e.CreateAttr("ovf:capacity", amount)
				e.CreateAttr("ovf:capacityAllocationUnits", unit)
			}
			e.CreateAttr("ovf:format", cmp.Or(d.Format, formatQCOW2))
			attr(e, prefix+":target", d.Target)
			attr(e, prefix+":persistent", ifTrue(d.Persistent))
		}
	}
}

// sizeOut writes a size in the unit of DSP0004 that leaves a whole number.
func sizeOut(b vee.Bytes) (amount, unit string) {
	for _, power := range []int{30, 20, 10} {
		if b%(1<<power) == 0 {
			return strconv.FormatInt(int64(b>>power), 10), fmt.Sprintf("byte * 2^%d", power)
		}
	}
	return strconv.FormatInt(int64(b), 10), "byte"
}

func (w *ovfWriter) networks(env *etree.Element, s *Service) {
	section := env.CreateElement("NetworkSection")
	info(section, "Networks")
	for _, n := range s.Networks {
		e := section.CreateElement("Network")
		e.CreateAttr("ovf:name", n.Name)
		attr(e, prefix+":public", ifTrue(n.Public))
		attr(e, prefix+":access", ifTrue(n.Access))
		attr(e, prefix+":subnet", n.Subnet)
		attr(e, prefix+":ipv6", ifTrue(n.IPv6))
		attr(e, prefix+":mtu", positive(n.MTU))
		if n.Description != "" {
			setText(e.CreateElement("Description"), n.Description)
		}
	}
}

func (w *ovfWriter) collection(env *etree.Element, s *Service) {
	e := env.CreateElement("VirtualSystemCollection")
	e.CreateAttr("ovf:id", s.Name)
	info(e, "Service "+s.Name)
	annotation(e, s.Description)
	products(e, s.Properties, s.Products)
	w.startup(e, s)
	affinity(e, s)
	writeSections(e, reflect.ValueOf(s).Elem())
	w.keep(e, s.Extra, "collection")
	for i := range s.Components {
		w.component(e, &s.Components[i])
	}
}

func annotation(to *etree.Element, text string) {
	if text == "" {
		return
	}
	e := to.CreateElement("AnnotationSection")
	info(e, "What it is")
	setText(e.CreateElement("Annotation"), text)
}

func products(to *etree.Element, properties []Property, list []Product) {
	if len(properties) > 0 {
		list = append([]Product{{Properties: properties}}, list...)
	}
	for _, p := range list {
		e := to.CreateElement("ProductSection")
		attr(e, "ovf:class", p.Class)
		attr(e, "ovf:instance", p.Instance)
		info(e, "Properties of the guest's environment")
		for _, t := range [][2]string{
			{"Product", p.Name}, {"Vendor", p.Vendor}, {"Version", p.Version}, {"FullVersion", p.FullVersion},
			{"ProductUrl", p.ProductURL}, {"VendorUrl", p.VendorURL}, {"AppUrl", p.AppURL},
		} {
			if t[1] != "" {
				setText(e.CreateElement(t[0]), t[1])
			}
		}
		for _, y := range p.Properties {
			k := e.CreateElement("Property")
			k.CreateAttr("ovf:key", y.Key)
			k.CreateAttr("ovf:type", cmp.Or(y.Type, "string"))
			attr(k, "ovf:value", y.Value)
			attr(k, "ovf:qualifiers", y.Qualifiers)
			attr(k, "ovf:userConfigurable", ifTrue(y.UserConfigurable))
			attr(k, "ovf:password", ifTrue(y.Password))
			attr(k, prefix+":cloudConfigurable", ifTrue(y.CloudConfigurable))
			for _, t := range [][2]string{{"Label", y.Label}, {"Description", y.Description}} {
				if t[1] != "" {
					setText(k.CreateElement(t[0]), t[1])
				}
			}
		}
	}
}

func (w *ovfWriter) startup(to *etree.Element, s *Service) {
	var section *etree.Element
	for _, c := range s.Components {
		if c.Startup == nil && len(c.StartAfter) == 0 {
			continue
		}
		if section == nil {
			section = to.CreateElement("StartupSection")
			info(section, "Order of start; the reverse is that of stop")
		}
		var u Startup
		if c.Startup != nil {
			u = *c.Startup
		}
		e := section.CreateElement("Item")
		e.CreateAttr("ovf:id", c.Name)
		e.CreateAttr("ovf:order", strconv.Itoa(u.Order))
		if u.StartDelay != 0 {
			e.CreateAttr("ovf:startDelay", seconds(u.StartDelay))
		}
		attr(e, "ovf:waitingForGuest", ifTrue(u.WaitingForGuest))
		if u.StopDelay != 0 {
			e.CreateAttr("ovf:stopDelay", seconds(u.StopDelay))
		}
		attr(e, "ovf:startAction", u.StartAction)
		attr(e, "ovf:stopAction", u.StopAction)
		attr(e, prefix+":after", strings.Join(c.StartAfter, " "))
	}
}

func seconds(d Duration) string { return strconv.FormatInt(int64(time.Duration(d)/time.Second), 10) }

func affinity(to *etree.Element, s *Service) {
	if len(s.Affinity)+len(s.AntiAffinity) == 0 {
		return
	}
	section := to.CreateElement(prefix + ":AffinitySection")
	info(section, infos["AffinitySection"])
	for _, kind := range []struct {
		tag    string
		groups []Group
	}{{"Affinity", s.Affinity}, {"AntiAffinity", s.AntiAffinity}} {
		for _, g := range kind.groups {
			e := section.CreateElement(prefix + ":" + kind.tag)
			e.CreateAttr("scope", string(g.Scope))
			for _, c := range g.Components {
				e.CreateElement(prefix + ":VirtualSystemId").SetText(c)
			}
		}
	}
}

func (w *ovfWriter) component(to *etree.Element, c *Component) {
	e := to.CreateElement("VirtualSystem")
	e.CreateAttr("ovf:id", c.Name)
	e.CreateAttr(prefix+":min", strconv.Itoa(c.Replicas.Min))
	e.CreateAttr(prefix+":max", strconv.Itoa(c.Replicas.Max))
	e.CreateAttr(prefix+":initial", strconv.Itoa(c.Replicas.Initial))
	written := *c
	if len(c.Ports) > 0 {
		e.CreateAttr(prefix+":lbport", strconv.Itoa(c.Ports[0].Port))
		if len(c.Ports) == 1 && c.Ports[0] == (Port{Port: c.Ports[0].Port, Scheme: "http"}) {
			written.Ports = nil // @lbport says it all
		}
	}
	info(e, "Replicas of "+c.Name)
	annotation(e, c.Description)
	products(e, c.Properties, c.Products)
	if o := c.OS; o != nil {
		k := e.CreateElement("OperatingSystemSection")
		k.CreateAttr("ovf:id", strconv.Itoa(o.ID))
		attr(k, "ovf:version", o.Version)
		info(k, "Operating system")
		if o.Description != "" {
			setText(k.CreateElement("Description"), o.Description)
		}
	}
	w.hardware(e, c)
	writeSections(e, reflect.ValueOf(&written).Elem())
	w.keep(e, c.Extra, "component")
}

func (w *ovfWriter) hardware(to *etree.Element, c *Component) {
	section := to.CreateElement("VirtualHardwareSection")
	info(section, "Hardware of each replica")
	if c.Hypervisor != "" {
		e := section.CreateElement("System")
		e.CreateElement("vssd:ElementName").SetText(c.Name)
		e.CreateElement("vssd:InstanceID").SetText("0")
		e.CreateElement("vssd:VirtualSystemType").SetText(c.Hypervisor)
	}
	id := 0
	// item adds one; its children come in the order of the alphabet, as CIM's schema wants.
	item := func(kind int, children map[string]string) *etree.Element {
		id++
		children["InstanceID"], children["ResourceType"] = strconv.Itoa(id), strconv.Itoa(kind)
		e := section.CreateElement("Item")
		for _, tag := range slices.Sorted(maps.Keys(children)) {
			if children[tag] != "" {
				e.CreateElement("rasd:" + tag).SetText(children[tag])
			}
		}
		return e
	}
	clock := ""
	if c.CPU.Reservation != 0 || c.CPU.Limit != 0 {
		clock = "hertz * 10^6"
	}
	item(typeCPU, map[string]string{
		"ElementName": fmt.Sprintf("%d vCPU", c.CPU.Count), "VirtualQuantity": strconv.Itoa(c.CPU.Count),
		"AllocationUnits": clock, "Weight": positive(c.CPU.Weight),
		"Reservation": positive(int(c.CPU.Reservation)), "Limit": positive(int(c.CPU.Limit)),
	})
	if c.CPU.Max != 0 {
		item(typeCPU, map[string]string{
			"ElementName": fmt.Sprintf("%d vCPU", c.CPU.Max), "VirtualQuantity": strconv.Itoa(c.CPU.Max),
		}).CreateAttr("ovf:bound", "max")
	}
	for i, m := range []vee.Bytes{c.Memory.Size, c.Memory.Max} {
		if m == 0 {
			continue
		}
		amount, unit := sizeOut(m)
		e := item(typeMemory, map[string]string{
			"ElementName": formatSize(m) + " of memory", "VirtualQuantity": amount, "AllocationUnits": unit,
		})
		if i == 1 {
			e.CreateAttr("ovf:bound", "max")
		}
	}
	for _, d := range c.Disks {
		kind := typeDisk
		if d.CDROM {
			kind = typeCD
		}
		item(kind, map[string]string{"ElementName": d.Name, "HostResource": "ovf:/disk/" + c.Name + "-" + d.Name})
	}
	for _, n := range c.NICs {
		e := item(typeNIC, map[string]string{"ElementName": "NIC on " + n.Network, "Connection": n.Network, "Address": n.MAC})
		attr(e, prefix+":target", n.Target)
		attr(e, prefix+":alias", n.Alias)
		attr(e, prefix+":address", n.Address)
	}
	w.keep(section, c.Extra, "hardware")
}

// positive writes a number that 0 means the absence of.
func positive(n int) string {
	if n == 0 {
		return ""
	}
	return strconv.Itoa(n)
}
