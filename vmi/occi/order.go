package occi

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"math"
	"regexp"
	"slices"
	"strings"
	"unicode"

	"github.com/reservoir-cloud/reservoir/internal/fault"
	"github.com/reservoir-cloud/reservoir/vee"
	"github.com/reservoir-cloud/reservoir/vmi"
	"github.com/reservoir-cloud/reservoir/vmi/occi/rendering"
)

// wish is what a client says of a compute that it wants, or wants to be otherwise: zero
// fields are not said.
type wish struct {
	template *template
	size     *size
	cores    int
	memory   vee.Bytes
	share    int
	arch     string
	userData *string
	tags     []rendering.TypeID
	note
}

// wishOf reads an entity whose kind is compute.
func (c *catalogue) wishOf(e rendering.Entity) (wish, error) {
	w := wish{note: note{Title: e.Title, Summary: e.Summary}}
	for _, text := range []string{e.Title, e.Summary} {
		if len(text) > 1024 || strings.ContainsFunc(text, unicode.IsControl) {
			return wish{}, fault.New(fault.Malformed, "title and summary: want a line of at most 1024 bytes")
		}
	}
	for _, m := range e.Mixins {
		if err := c.applyMixin(&w, m); err != nil {
			return wish{}, err
		}
	}
	types := append([]rendering.TypeID{kindCompute}, e.Mixins...)
	for _, name := range slices.Sorted(maps.Keys(e.Attributes)) {
		if err := c.settable(name, types...); err != nil {
			return wish{}, err
		}
		if err := w.attribute(name, e.Attributes[name]); err != nil {
			return wish{}, err
		}
	}
	for m, said := range map[rendering.TypeID]bool{mixinSSHKey: w.SSHKey != "", mixinUserData: w.UserData} {
		if slices.Contains(e.Mixins, m) && !said {
			return wish{}, fault.New(fault.Malformed, "mixin %s: its attribute %s is required", m, c.byType[m].Attributes[0].Name)
		}
	}
	if w.size != nil { // a template overrides (GFD.224, "Resource Template")
		w.cores, w.memory = w.size.cores, w.size.memory
	}
	if w.arch != "" && w.template != nil && w.arch != architecture(*w.template) {
		return wish{}, fault.New(fault.Malformed, "occi.compute.architecture %s: image %s is %s", w.arch, w.template.source(), w.template.Arch)
	}
	return w, nil
}

func (c *catalogue) applyMixin(w *wish, m rendering.TypeID) error {
	if t, ok := c.template(m); ok {
		if w.template != nil {
			return fault.New(fault.Malformed, "two OS templates, %s and %s: want one", w.template.term, t.term)
		}
		w.template = &t
		return nil
	}
	if s, ok := sizeOf(m); ok {
		if w.size != nil {
			return fault.New(fault.Malformed, "two resource templates, %s and %s: want one", w.size.term, s.term)
		}
		w.size = &s
		return nil
	}
	k := c.byType[m]
	switch {
	case k == nil:
		return fault.New(fault.Malformed, "there is no mixin %s", m).Try("see what there is: GET %s/-/", Base)
	case !slices.Contains(k.Applies, rendering.TypeID(kindCompute)):
		return fault.New(fault.Malformed, "mixin %s does not apply to a compute", m)
	case c.tags[m]:
		w.tags = append(w.tags, m)
	}
	return nil
}

var hostname = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$`)

// attribute that settable has let through.
func (w *wish) attribute(name string, value any) error {
	bad := func(want string) error { return fault.New(fault.Malformed, "attribute %s: want %s", name, want) }
	number, isNumber := value.(float64)
	text, isText := value.(string)
	whole := isNumber && number == math.Trunc(number) && number >= 1 && number <= 1<<20
	switch name {
	case "occi.compute.cores":
		if w.cores = int(number); !whole {
			return bad("a whole number of virtual CPUs")
		}
	case "occi.compute.share":
		if w.share = int(number); !whole {
			return bad("a whole number of at least 1; 100 is usual")
		}
	case "occi.compute.memory":
		if w.memory = vee.Bytes(math.Round(number*1024)) * vee.MiB; !isNumber || w.memory <= 0 || number > 1<<20 {
			return bad("a number of GiB, such as 0.5")
		}
	case "occi.compute.hostname":
		if w.Hostname = text; !isText || len(text) > 253 || !hostname.MatchString(text) {
			return bad("a DNS name")
		}
	case "occi.compute.architecture":
		if w.arch = text; text != "x86" && text != "x64" {
			return bad("x86 or x64")
		}
	case "occi.credentials.ssh.publickey":
		if w.SSHKey = strings.TrimSpace(text); !isText || w.SSHKey == "" || strings.ContainsFunc(w.SSHKey, unicode.IsControl) {
			return bad("one line of an authorized_keys file")
		}
	case "occi.compute.userdata":
		if !isText || text == "" {
			return bad("cloud-init user data, as it is or in base64")
		}
		if plain, err := base64.StdEncoding.DecodeString(text); err == nil {
			text = string(plain)
		}
		w.UserData, w.userData = true, &text
	}
	return nil
}

// order is the descriptor of a compute that a client describes.
func (c *catalogue) order(e rendering.Entity, networks []Network) (vmi.InitializeVEE, error) {
	w, err := c.wishOf(e)
	if err != nil {
		return vmi.InitializeVEE{}, err
	}
	if w.template == nil {
		return vmi.InitializeVEE{}, fault.New(fault.Malformed, "a compute needs an OS template: a mixin of scheme %sos_tpl#", schemaOurs).
			Try("choose one: GET %s/-/, or push an image: reservoir image push", Base)
	}
	d := vee.Descriptor{Name: dnsLabel(w.Hostname, w.Title, w.template.term), VCPUs: w.cores, Memory: w.memory, CPU: vee.CPUShare{Weight: w.share}}
	if d.VCPUs == 0 {
		d.VCPUs = usual.cores
	}
	if d.Memory == 0 {
		d.Memory = max(usual.memory, w.template.MinMemory)
	}
	if d.Memory < w.template.MinMemory {
		return vmi.InitializeVEE{}, fault.New(fault.Malformed, "image %s needs %v of memory, the compute would have %v", w.template.source(), w.template.MinMemory, d.Memory).
			Try("choose a larger resource_tpl, or set occi.compute.memory")
	}
	d.Disks = []vee.Disk{{Name: "root", Image: w.template.Digest, Source: w.template.source()}}
	if d.NICs, err = plugs(e.Links, networks); err != nil {
		return vmi.InitializeVEE{}, err
	}
	for _, t := range w.tags {
		d.Tags = append(d.Tags, word(t))
	}
	d.Context, err = w.context(d.Name)
	return vmi.InitializeVEE{Descriptor: d}, err
}

// plugs are the NICs that a compute's links ask for.
func plugs(links []rendering.Entity, networks []Network) (ns []vee.NIC, err error) {
	for _, l := range links {
		switch l.Kind {
		case kindNIC:
		case kindDiskLink:
			return nil, fault.New(fault.Malformed, "link to %s: a compute's disks are made with it; there is no storage to link to", l.Target.Location)
		default:
			return nil, fault.New(fault.Malformed, "link to %s: kind %q: want %s", l.Target.Location, l.Kind, kindNIC)
		}
		i := slices.IndexFunc(networks, func(n Network) bool {
			_, at := cutHost(l.Target.Location)
			return at == path("network", n.Name) || at == path("network", urn+"network:"+n.Name)
		})
		if i < 0 {
			return nil, fault.New(fault.Malformed, "link to %s: there is no such network", l.Target.Location).Try("see which there are: GET %s/network/", Base)
		}
		nic := vee.NIC{Network: networks[i].Name, Public: true}
		for name, value := range l.Attributes {
			text, isText := value.(string)
			if name != "occi.networkinterface.interface" || !isText {
				return nil, fault.New(fault.Malformed, "link to %s: attribute %s is set by the site", l.Target.Location, name).Try("leave it out")
			}
			nic.Target = text
		}
		ns = append(ns, nic)
	}
	if ns == nil && len(networks) > 0 {
		ns = []vee.NIC{{Network: networks[0].Name, Public: true}}
	}
	return ns, nil
}

// cutHost takes the scheme and the host off an absolute URL.
func cutHost(location string) (host, path string) {
	if _, rest, ok := strings.Cut(location, "://"); ok {
		if i := strings.IndexByte(rest, '/'); i >= 0 {
			return rest[:i], rest[i:]
		}
		return rest, "/"
	}
	return "", location
}

// context is what the guest finds on its medium. What is not said is left to the host.
func (w wish) context(name string) (map[string]string, error) {
	n, err := json.Marshal(w.note)
	if err != nil {
		return nil, err
	}
	files := map[string]string{noteFile: string(n) + "\n"}
	if w.userData != nil {
		files[userDataFile] = *w.userData
	}
	if w.SSHKey == "" && (w.Hostname == "" || w.Hostname == name) {
		return files, nil
	}
	meta := map[string]any{"instance-id": name, "local-hostname": name} // JSON is YAML
	if w.Hostname != "" {
		meta["local-hostname"] = w.Hostname
	}
	if w.SSHKey != "" {
		meta["public-keys"] = []string{w.SSHKey}
	}
	m, err := json.Marshal(meta)
	files["meta-data"] = string(m) + "\n"
	return files, err
}

// dnsLabel makes the name of a VEE of the first of texts that has any letter for it.
func dnsLabel(texts ...string) string {
	for i, text := range texts {
		if i == 0 {
			text, _, _ = strings.Cut(text, ".")
		}
		label := strings.Trim(strings.Map(func(r rune) rune {
			switch {
			case 'a' <= r && r <= 'z' || '0' <= r && r <= '9':
				return r
			case 'A' <= r && r <= 'Z':
				return r + 'a' - 'A'
			}
			return '-'
		}, text), "-")
		if label == "" {
			continue
		}
		if label[0] <= '9' {
			label = "vm-" + label
		}
		return strings.TrimRight(label[:min(63, len(label))], "-")
	}
	return "vm"
}
