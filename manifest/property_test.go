package manifest

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/vee"
)

// anyText is what YAML and XML could stumble over.
func anyText() *rapid.Generator[string] {
	nasty := []rune("ab \n\t:#-'\"&<>{}[]|>%@`!*,?\\~0é€😀]]>")
	return rapid.OneOf(
		rapid.StringOfN(rapid.SampledFrom(nasty), 1, 24, -1),
		rapid.SampledFrom([]string{"true", "null", "~", "0x10", "1e3", "2001-01-01", "- a", "a: b", "<<", "---", "...", " lead", "trail ", "a\n", "\n", "a\n\n", "\n a", "@id(1) @Domain", "]]>", "&amp;", "no", "="}),
	)
}

// maybe leaves a text out half of the time.
func maybe(g *rapid.Generator[string]) *rapid.Generator[string] {
	return rapid.OneOf(rapid.Just(""), g)
}

func anyDuration() *rapid.Generator[Duration] {
	return rapid.Custom(func(t *rapid.T) Duration {
		unit := rapid.SampledFrom([]time.Duration{time.Nanosecond, time.Millisecond, time.Second, time.Minute, time.Hour, 24 * time.Hour}).Draw(t, "unit")
		return Duration(unit * time.Duration(rapid.IntRange(1, 1000).Draw(t, "n")))
	})
}

func anySize() *rapid.Generator[vee.Bytes] {
	return rapid.Custom(func(t *rapid.T) vee.Bytes {
		unit := rapid.SampledFrom([]vee.Bytes{1, vee.KiB, vee.MiB, vee.GiB}).Draw(t, "unit")
		return 8*vee.MiB + unit*vee.Bytes(rapid.IntRange(0, 5000).Draw(t, "n"))
	})
}

// fill sets every exported field below v at random; what has rules is set over it by the
// caller. Lists get up to two entries, and never an empty one.
func fill(t *rapid.T, v reflect.Value, enum []string) {
	switch x := v.Addr().Interface().(type) {
	case *Duration:
		*x = anyDuration().Draw(t, "duration")
		return
	case *Clock:
		*x = Clock(time.Minute * time.Duration(rapid.IntRange(1, 24*60).Draw(t, "minute")))
		return
	case *vee.Bytes:
		*x = anySize().Draw(t, "size")
		return
	case *MHz:
		*x = MHz(rapid.IntRange(0, 5000).Draw(t, "mhz"))
		return
	case *Kilometres:
		*x = Kilometres(rapid.Float64Range(0.001, 20000).Draw(t, "km"))
		return
	case *Digest:
		*x = rapid.SampledFrom([]Digest{"", Digest("sha256:" + strings.Repeat("0a", 32)), Digest("sha512:" + strings.Repeat("0a", 64))}).Draw(t, "digest")
		return
	case *[]Extra:
		return
	}
	switch v.Kind() {
	case reflect.String:
		if enum != nil {
			v.SetString(rapid.SampledFrom(append([]string{""}, enum...)).Draw(t, "word"))
			return
		}
		v.SetString(maybe(anyText()).Draw(t, "text"))
	case reflect.Bool:
		v.SetBool(rapid.Bool().Draw(t, "bool"))
	case reflect.Int:
		v.SetInt(int64(rapid.IntRange(0, 100).Draw(t, "int")))
	case reflect.Float64:
		v.SetFloat(rapid.Float64Range(0.001, 60).Draw(t, "float"))
	case reflect.Pointer:
		if rapid.Bool().Draw(t, "there") {
			v.Set(reflect.New(v.Type().Elem()))
			fill(t, v.Elem(), nil)
		}
	case reflect.Slice:
		for range rapid.IntRange(0, 2).Draw(t, "n") {
			e := reflect.New(v.Type().Elem()).Elem()
			fill(t, e, nil)
			v.Set(reflect.Append(v, e))
		}
	case reflect.Struct:
		for _, f := range fieldsOf(v.Type()) {
			fill(t, v.FieldByIndex(f.index), f.enum)
		}
	}
}

var extras = map[string]string{
	"envelope":   `<v:A xmlns:v="urn:v" xmlns:ovf="` + nsOVF + `" ovf:required="false" b="x&#xA;y"> <c xmlns="">t &amp; u</c>` + "\n" + ` <!-- kept --></v:A>`,
	"collection": `<Strings xmlns="` + nsOVF + `"><Msg>x</Msg></Strings>`,
	"component":  `<w:B xmlns:w="urn:w" w:required="0"><?pi here?><![CDATA[raw <text>]]></w:B>`,
	"hardware":   `<Item xmlns="` + nsOVF + `" xmlns:r="` + nsRASD + `"><r:ResourceType>5</r:ResourceType></Item>`,
}

func anyExtras(t *rapid.T, in ...string) []Extra {
	var list []Extra
	for _, i := range in {
		if rapid.Bool().Draw(t, "extra") {
			list = append(list, Extra{In: i, XML: extras[i]})
		}
	}
	return list
}

func numbered(prefix string, i int) string { return fmt.Sprintf("%s%d", prefix, i) }

func anyProperties(t *rapid.T, list []Property) {
	for i := range list {
		list[i].Key = numbered("key", i)
		list[i].Type = rapid.SampledFrom([]string{"", "string", "uint16"}).Draw(t, "type")
	}
}

// anyService makes a service that breaks no rule.
func anyService(t *rapid.T) *Service {
	s := &Service{}
	fill(t, reflect.ValueOf(s).Elem(), nil)
	if len(s.Components) == 0 {
		s.Components = make([]Component, 1)
		fill(t, reflect.ValueOf(&s.Components[0]).Elem(), nil)
	}
	for len(s.KPIs) == 0 {
		fill(t, reflect.ValueOf(&s.KPIs).Elem(), nil)
	}
	s.Name = "service"
	var names []string
	for i := range s.Components {
		s.Components[i].Name = numbered("c", i)
		names = append(names, s.Components[i].Name)
	}
	name := func() string { return rapid.SampledFrom(names).Draw(t, "component") }
	for i := range s.Networks {
		n := &s.Networks[i]
		if n.Name, n.Subnet, n.MTU = numbered("net", i), "", 0; n.Public {
			n.IPv6, n.Access = false, false
			continue
		}
		n.Subnet = rapid.SampledFrom([]string{"", "10.1.0.0/24"}).Draw(t, "subnet")
		n.MTU = rapid.SampledFrom([]int{0, 1280}).Draw(t, "MTU")
	}
	for i := range s.KPIs {
		s.KPIs[i].Name = numbered("kpi", i)
		s.KPIs[i].Component = rapid.SampledFrom(append(names, "")).Draw(t, "component")
	}
	for i := range s.Files {
		s.Files[i].ID = numbered("file ", i)
		s.Files[i].Href = rapid.SampledFrom([]string{"a.qcow2", "dir/b", "https://x.example/?a=1&b", "name:tag"}).Draw(t, "href")
	}
	anyProperties(t, s.Properties)
	for i := range s.Products {
		s.Products[i].Class, s.Products[i].Instance = numbered("class", i), ""
		anyProperties(t, s.Products[i].Properties)
	}
	for _, list := range [][]Group{s.Affinity, s.AntiAffinity} {
		for i := range list {
			list[i].Scope = rapid.SampledFrom([]Scope{Physical, Datacenter, Domain}).Draw(t, "scope")
			list[i].Components = []string{name()}
		}
	}
	for i := range s.Rules {
		r := &s.Rules[i]
		r.Name, r.Condition, r.Do = numbered("rule", i), "a < 1 && b > 2", Action{Kind: "scaleDown", Component: name(), By: r.Do.By}
		if rapid.Bool().Draw(t, "resize") {
			r.Do = Action{Kind: "resize", Component: name(), Memory: vee.GiB, CPU: i}
		}
	}
	promises := func(a *Availability, list []Constraint) {
		for i := range list {
			list[i].KPI = "kpi0"
			one, two := 0.0, 2.5
			list[i].Range.Min, list[i].Range.Max = &one, nil
			if rapid.Bool().Draw(t, "max") {
				list[i].Range.Max = &two
			}
		}
	}
	deployment := func(d *Deployment) {
		if d == nil {
			return
		}
		repair := func(p *Places) {
			p.Areas = append(p.Areas, Area{Name: "an area"})
			for _, list := range [][]Area{p.Timezones, p.Areas} {
				for i := range list {
					list[i].Name = "x" + list[i].Name
				}
			}
			for i := range p.Countries {
				p.Countries[i].Name = "NO"
			}
		}
		for i := range d.Restrictions {
			repair(&d.Restrictions[i].Places)
		}
		for i := range d.Balance {
			repair(&d.Balance[i].Places)
			d.Balance[i].Percent /= 2
		}
	}
	sites := func(x *Sites) {
		if x == nil {
			return
		}
		for i := range x.Allow {
			x.Allow[i] = numbered("site", i)
		}
		for i := range x.Forbid {
			x.Forbid[i] = numbered("other", i)
		}
		for i := range x.Countries {
			x.Countries[i].Name = "NO"
		}
		for i := range x.Jurisdictions {
			x.Jurisdictions[i].Name = "x" + x.Jurisdictions[i].Name
		}
		if x.Policy == "location" && x.Users == nil {
			x.Users = &Location{Latitude: 59.5, Longitude: -18}
		}
	}
	promises(s.Availability, s.Performance)
	deployment(s.Deployment)
	sites(s.Sites)
	if s.Offer != nil {
		for i := range s.Offer.Sites {
			s.Offer.Sites[i] = numbered("site", i)
		}
	}
	s.Standby = s.Standby[:min(len(s.Standby), maxStandbys)]
	for i := range s.Standby {
		s.Standby[i] = numbered("site", i)
	}
	if s.Contract != nil {
		s.Contract.Offer = "o" + s.Contract.Offer
	}
	s.Extra = anyExtras(t, "envelope", "collection")

	for i := range s.Components {
		c := &s.Components[i]
		c.Replicas.Max = c.Replicas.Initial + 1
		c.Replicas.Min = min(c.Replicas.Min, c.Replicas.Initial)
		c.Hypervisor = rapid.SampledFrom([]string{"", "qemu", "vmx-07"}).Draw(t, "hypervisor")
		c.CPU.Count++
		c.CPU.Max = rapid.SampledFrom([]int{0, c.CPU.Count + 1}).Draw(t, "most")
		c.CPU.Limit = c.CPU.Reservation
		c.Memory.Max = rapid.SampledFrom([]vee.Bytes{0, 32 * vee.TiB}).Draw(t, "max")
		c.Disks = append(c.Disks, Disk{Image: "an image"})
		for j := range c.Disks {
			d := &c.Disks[j]
			d.Name = rapid.SampledFrom([]string{"root", "c0-x"}).Draw(t, "disk") + numbered("", j)
			d.Target = numbered("vd", j)
			d.Image = rapid.SampledFrom([]string{"img:1", "file 0", "a/b@sha256:00"}).Draw(t, "image")
			d.Persistent = d.Persistent && !d.CDROM
		}
		if rapid.Bool().Draw(t, "short") {
			c.Disks[0] = Disk{Name: "root", Image: "img"}
		}
		if len(s.Networks) == 0 {
			c.NICs = nil
		}
		for j := range c.NICs {
			c.NICs[j] = NIC{Network: "net0", Alias: rapid.SampledFrom([]string{"", "alias"}).Draw(t, "alias"), MAC: rapid.SampledFrom([]string{"", "52:54:00:00:00:01"}).Draw(t, "mac")}
			if c.Replicas.Max == 1 {
				c.NICs[j].Address = rapid.SampledFrom([]string{"", "10.1.0.10"}).Draw(t, "address")
			}
		}
		if m := c.Metrics; m != nil {
			m.Port, m.Path = 9100, rapid.SampledFrom([]string{"", "/a b"}).Draw(t, "path")
			m.Every = max(m.Every, leastScrape)
		}
		if r := c.Reliability; r != nil {
			r.Keep = min(r.Keep, maxKeep)
			r.Checkpoint, r.Heartbeat = max(r.Checkpoint, minCheckpoint), max(r.Heartbeat, minHeartbeat)
			if c.Restart == vee.RestartNever {
				r.From = vee.FromDisk
			}
		}
		for j := range c.Ports {
			c.Ports[j].Port = 80 + j
			c.Ports[j].Health = rapid.SampledFrom([]string{"", "/a b"}).Draw(t, "health")
		}
		if c.Balanced != "" {
			c.Balanced = name()
		}
		c.StartAfter = nil
		if c.Startup != nil {
			c.Startup.Order = 0
			c.Startup.StartDelay, c.Startup.StopDelay = Duration(5*time.Second), Duration(2*time.Minute)
		}
		if i > 0 && rapid.Bool().Draw(t, "after") {
			c.StartAfter = []string{names[i-1]}
		}
		for j := range c.Tags {
			c.Tags[j] = numbered("tag", j)
		}
		for j := range c.Raw {
			c.Raw[j].Key = numbered("driver", j)
		}
		anyProperties(t, c.Properties)
		for j := range c.Products {
			c.Products[j].Class, c.Products[j].Instance = "", numbered("i", j)
			anyProperties(t, c.Products[j].Properties)
		}
		for j := range c.SSHKeys {
			c.SSHKeys[j] = "ssh-rsa AAAA= " + strings.TrimSpace(strings.ReplaceAll(c.SSHKeys[j], "\n", ""))
		}
		if w := c.Software; w != nil {
			for j := range w.Files {
				w.Files[j].Path = "/" + w.Files[j].Path
				w.Files[j].Mode = rapid.SampledFrom([]string{"", "0755"}).Draw(t, "mode")
			}
		}
		for j := range c.Elastic {
			c.Elastic[j].KPI = "kpi0"
		}
		for j := range c.Schedules {
			x := &c.Schedules[j]
			x.Name, x.Max = numbered("schedule", j), x.Min+x.Max
			x.Days = rapid.SampledFrom([][]string{nil, {"mon"}, {"sat", "sun"}}).Draw(t, "days")
			if x.From == x.To {
				x.To = Clock(24 * time.Hour)
				x.From = 0
			}
		}
		promises(c.Availability, c.Performance)
		deployment(c.Deployment)
		sites(c.Sites)
		for j := range c.Firewall {
			f := &c.Firewall[j]
			f.Action = "allow"
			if f.Ports = ""; f.Protocol == "tcp" || f.Protocol == "udp" {
				f.Ports = rapid.SampledFrom([]string{"", "1", "1-65535"}).Draw(t, "ports")
			}
			f.Peer = rapid.SampledFrom([]string{"", "c0", "10.0.0.0/8", "::/0"}).Draw(t, "peer")
		}
		for j := range c.DiskMapping {
			c.DiskMapping[j] = DiskMapping{Disk: c.Disks[0].Name, Storage: "a & b"}
		}
		c.Extra = anyExtras(t, "component", "hardware")
	}
	s.normalise()
	return s
}

// TestConversionLosesNothing: any service → YAML → service and → OVF → service.
func TestConversionLosesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := anyService(t)
		for form, write := range map[string]func() ([]byte, error){"yaml": s.YAML, "ovf": s.OVF} {
			text, err := write()
			if err != nil {
				t.Fatal(err)
			}
			got, err := Parse("written."+form, text)
			if err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			if !reflect.DeepEqual(got, s) {
				t.Fatalf("%s lost something:\n%s\n%s", form, text, difference("", reflect.ValueOf(*s), reflect.ValueOf(*got)))
			}
		}
	})
}

// difference names the first part that is not the same.
func difference(path string, a, b reflect.Value) string {
	if reflect.DeepEqual(a.Interface(), b.Interface()) {
		return ""
	}
	switch {
	case a.Kind() == reflect.Struct:
		for i := range a.NumField() {
			if d := difference(path+"."+a.Type().Field(i).Name, a.Field(i), b.Field(i)); d != "" {
				return d
			}
		}
	case a.Kind() == reflect.Slice && a.Len() == b.Len():
		for i := range a.Len() {
			if d := difference(atIndex(path, i), a.Index(i), b.Index(i)); d != "" {
				return d
			}
		}
	case a.Kind() == reflect.Pointer && !a.IsNil() && !b.IsNil():
		return difference(path, a.Elem(), b.Elem())
	}
	return fmt.Sprintf("%s: %#v became %#v", path, a.Interface(), b.Interface())
}
