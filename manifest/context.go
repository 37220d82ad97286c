package manifest

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/beevik/etree"

	"github.com/reservoir-cloud/reservoir/manifest/macro"
	"github.com/reservoir-cloud/reservoir/vee"
)

// Replica of a component, once its VEE has been initialised.
type Replica struct {
	Component string
	Number    int
	ID        vee.ID
	// NICs as the VEE has them, with their addresses. Network is the manifest's name.
	NICs []vee.NIC
}

func (r Replica) name() string { return fmt.Sprintf("%s-%d", r.Component, r.Number) }

// Around is what a guest may be told of the service that it is part of.
type Around struct {
	ServiceID string
	Domain    string // of its names, "shop.alpha.internal"
	Channel   string // URL that programs in the guest of the replica push measurements to
	// Replicas of the service that are there or come up with this one, itself among them or
	// not. The first of a component is the one by which others reach it.
	Replicas []Replica
}

// mostStock is how much user data is repeated in the OVF environment, bytes: a guest that
// reads nothing else must do without more.
const mostStock = 24 << 10

// mostEntities is how many bytes of an OVF environment its siblings may take. Of a service
// that has more, each guest is told of the first.
const mostEntities = 48 << 10

// Context is what the guest of one replica is told: the files of its seed medium. Macros
// are resolved; the error names each property of which one cannot be. The guest's network
// is not in it: who plugs it in adds that.
func (s *Service) Context(self Replica, around Around) (map[string]string, error) {
	c := s.Component(self.Component)
	if c == nil {
		return nil, fmt.Errorf("there is no component %q", self.Component)
	}
	properties, err := s.resolved(c, self, around)
	if err != nil {
		return nil, fmt.Errorf("component %s: %w", c.Name, err)
	}
	id := self.name()
	if around.ServiceID != "" {
		id = around.ServiceID + "." + id
	}
	// JSON is YAML, and quotes what must be quoted.
	meta, _ := json.MarshalIndent(struct {
		ID   string   `json:"instance-id"`
		Host string   `json:"local-hostname"`
		Keys []string `json:"public-keys,omitempty"`
	}{id, self.name(), c.SSHKeys}, "", "  ") // strings always marshal
	files := map[string]string{"meta-data": string(meta) + "\n", "user-data": c.userData()}
	// What cloud-init's OVF data source reads, for a guest that looks for nothing else.
	stock := []Pair{{"instance-id", id}, {"hostname", self.name()}}
	if len(c.SSHKeys) > 0 {
		stock = append(stock, Pair{"public-keys", strings.Join(c.SSHKeys, "\n")})
	}
	if n := len(files["user-data"]); (c.UserData != "" || c.Software != nil) && n <= mostStock {
		stock = append(stock, Pair{"user-data", base64.StdEncoding.EncodeToString([]byte(files["user-data"]))})
	}
	given := map[string]bool{}
	for _, p := range properties {
		given[p.Key] = true
	}
	for _, p := range stock {
		if !given[p.Key] {
			properties = append(properties, p)
		}
	}
	files["ovf-env.xml"] = s.environment(self, properties, around)
	return files, nil
}

// Told is what a component's guests are told, before macros are resolved: two that are
// equal make the same of the same guest.
func (s *Service) Told(c *Component) map[string]string {
	told := map[string]string{"user-data": c.userData(), "keys": strings.Join(c.SSHKeys, "\n")}
	note := func(key string, p Property) {
		told["property "+key] = fmt.Sprintf("%s %t", p.Value, p.CloudConfigurable)
	}
	eachProperty(s.Properties, s.Products, note)
	eachProperty(c.Properties, c.Products, note)
	return told
}

// resolved properties of a replica: the service's and the component's, which win, in the
// order that they are first named in.
func (s *Service) resolved(c *Component, self Replica, around Around) ([]Pair, error) {
	scope := macro.Scope{
		ServiceID: around.ServiceID, VEE: self.ID, Domain: around.Domain, Channel: around.Channel,
		Number: self.Number, NICs: c.macroNICs(self), Others: map[string][]macro.NIC{},
	}
	for _, r := range around.Replicas {
		if _, known := scope.Others[r.Component]; !known {
			scope.Others[r.Component] = s.Component(r.Component).macroNICs(r)
		}
	}
	at := map[string]int{}
	var list []Pair
	var errs []error
	add := func(key string, p Property) {
		value := p.Value
		if p.CloudConfigurable {
			var err error
			if value, err = scope.Expand(p.Value); err != nil {
				errs = append(errs, fmt.Errorf("property %s: %w", key, err))
			}
		}
		if i, twice := at[key]; twice {
			list[i].Value = value
			return
		}
		at[key] = len(list)
		list = append(list, Pair{key, value})
	}
	own := map[string]bool{}
	eachProperty(c.Properties, c.Products, func(key string, _ Property) { own[key] = true })
	eachProperty(s.Properties, s.Products, func(key string, p Property) {
		if own[key] {
			p.CloudConfigurable = false // the component's wins: nobody sees this one
		}
		add(key, p)
	})
	eachProperty(c.Properties, c.Products, add)
	return list, errors.Join(errs...)
}

// macroNICs are a replica's NICs under the names that macros know. c is nil for a component
// that the manifest has no more.
func (c *Component) macroNICs(r Replica) (nics []macro.NIC) {
	for i, n := range r.NICs {
		m := macro.NIC{NIC: n, Name: n.Network}
		if c != nil && i < len(c.NICs) && c.NICs[i].Network == n.Network {
			m.Alias = c.NICs[i].Alias
		}
		nics = append(nics, m)
	}
	return nics
}

// environment is the ovf-env.xml of a replica (DSP0027): its own properties, and an Entity
// with the properties of every sibling. Passwords are nobody else's business.
func (s *Service) environment(self Replica, properties []Pair, around Around) string {
	doc := etree.NewDocument()
	doc.WriteSettings = writeSettings
	doc.CreateProcInst("xml", `version="1.0" encoding="UTF-8"`)
	env := doc.CreateElement("Environment")
	const ns = "http://schemas.dmtf.org/ovf/environment/1"
	env.CreateAttr("xmlns", ns)
	env.CreateAttr("xmlns:oe", ns)
	env.CreateAttr("oe:id", self.name())
	section(env, properties)
	room := mostEntities
	for _, r := range around.Replicas {
		c := s.Component(r.Component)
		if c == nil || r.name() == self.name() {
			continue
		}
		// What a sibling cannot resolve is told where that sibling is started.
		list, _ := s.resolved(c, r, around)
		secret := map[string]bool{}
		note := func(key string, p Property) { secret[key] = p.Password }
		eachProperty(s.Properties, s.Products, note)
		eachProperty(c.Properties, c.Products, note)
		open := make([]Pair, 0, len(list)+1)
		for _, p := range list {
			if !secret[p.Key] {
				open = append(open, p)
			}
		}
		for _, p := range append(open, Pair{Key: r.name()}) {
			room -= len(p.Key) + len(p.Value) + len(`<Property oe:key="" oe:value=""/>`)
		}
		if room < 0 {
			break
		}
		e := env.CreateElement("Entity")
		e.CreateAttr("oe:id", r.name())
		section(e, open)
	}
	doc.Indent(2)
	text, _ := doc.WriteToString() // to memory
	return text
}

func section(parent *etree.Element, properties []Pair) {
	if len(properties) == 0 {
		return
	}
	e := parent.CreateElement("PropertySection")
	for _, y := range properties {
		p := e.CreateElement("Property")
		p.CreateAttr("oe:key", y.Key)
		p.CreateAttr("oe:value", y.Value)
	}
}

// userData for cloud-init: the component's own, after what installs its software. Packages
// and files are a cloud-config; the commands are a script that ends at the first which
// fails, so that cloud-init knows.
func (c *Component) userData() string {
	own := c.UserData
	if c.Software == nil {
		if own == "" {
			return "#cloud-config\n{}\n"
		}
		return own
	}
	type part struct {
		Type     string `json:"type,omitempty"`
		Merge    string `json:"Merge-Type,omitempty"`
		Filename string `json:"filename,omitempty"`
		Content  string `json:"content"`
	}
	type file struct {
		Path    string `json:"path"`
		Mode    string `json:"permissions,omitempty"`
		Content string `json:"content"`
	}
	config := struct {
		Packages []string `json:"packages,omitempty"`
		Update   bool     `json:"package_update,omitempty"`
		Files    []file   `json:"write_files,omitempty"`
	}{Packages: c.Software.Packages, Update: len(c.Software.Packages) > 0}
	for _, f := range c.Software.Files {
		config.Files = append(config.Files, file{f.Path, f.Mode, f.Text})
	}
	text, _ := json.MarshalIndent(config, "", "  ") // strings always marshal
	parts := []part{{Type: "text/cloud-config", Content: "#cloud-config\n" + string(text) + "\n"}}
	if len(c.Software.Commands) > 0 {
		script := "#!/bin/sh\nset -ex\n" + strings.Join(c.Software.Commands, "\n") + "\n"
		parts = append(parts, part{Type: "text/x-shellscript", Filename: "00-software", Content: script})
	}
	if own != "" {
		parts = append(parts, part{Merge: "list(append)+dict(no_replace,recurse_list)+str()", Content: own})
	}
	archive, _ := json.MarshalIndent(parts, "", "  ")
	return "#cloud-config-archive\n" + string(archive) + "\n"
}
