package occi

import "github.com/reservoir-cloud/reservoir/vmi/occi/rendering"

// The types of GFD.221 and GFD.224, as far as the site has them, as tables.

func attr(name, typ, description string, mutable bool) rendering.Attribute {
	return rendering.Attribute{Name: name, Type: typ, Mutable: mutable, Description: description}
}

func required(a rendering.Attribute) rendering.Attribute { a.Required = true; return a }

// oneOf restricts a string to words.
func oneOf(a rendering.Attribute, words ...any) rendering.Attribute {
	a.Pattern = map[string]any{"$schema": "http://json-schema.org/draft-04/schema#", "type": "string", "enum": words}
	return a
}

// state attributes of a kind: every kind of GFD.224 has both, and only the site sets them.
func state(kind string, words ...any) []rendering.Attribute {
	return []rendering.Attribute{
		oneOf(attr("occi."+kind+".state", "string", "current state", false), words...),
		attr("occi."+kind+".state.message", "string", "what there is to say of the state", false),
	}
}

func kind(id rendering.TypeID, title string, parent rendering.TypeID, terms []string, attributes ...rendering.Attribute) rendering.Category {
	k := rendering.Category{Class: rendering.Kind, Type: id, Title: title, Parent: parent, Location: Base + "/" + id.Term() + "/", Attributes: attributes}
	for _, t := range terms {
		k.Actions = append(k.Actions, actionType(id.Term(), t))
	}
	return k
}

func action(kind, term, title string, attributes ...rendering.Attribute) rendering.Category {
	return rendering.Category{Class: rendering.Action, Type: actionType(kind, term), Title: title, Attributes: attributes}
}

func mixin(id rendering.TypeID, title string, applies rendering.TypeID, attributes ...rendering.Attribute) rendering.Category {
	return rendering.Category{Class: rendering.Mixin, Type: id, Title: title, Location: Base + "/mixin/" + id.Term() + "/",
		Applies: []rendering.TypeID{applies}, Attributes: attributes}
}

var kinds = []rendering.Category{
	{Class: rendering.Kind, Type: schemaCore + "entity", Title: "Entity", Attributes: []rendering.Attribute{
		attr("occi.core.id", "string", "a URI; drawn by the site", false), attr("occi.core.title", "string", "name for people", true)}},
	kind(kindResource, "Resource", schemaCore+"entity", nil, attr("occi.core.summary", "string", "a sentence about it", true)),
	kind(kindLink, "Link", schemaCore+"entity", nil,
		required(attr("occi.core.source", "string", "path of a resource", true)), required(attr("occi.core.target", "string", "path of a resource", true))),
	kind(kindCompute, "Compute: a VEE", kindResource, []string{"start", "stop", "restart", "suspend", "save"}, append([]rendering.Attribute{
		oneOf(attr("occi.compute.architecture", "string", "that of the image", true), "x86", "x64"),
		attr("occi.compute.cores", "number", "virtual CPUs", true),
		attr("occi.compute.hostname", "string", "DNS name", true),
		attr("occi.compute.share", "number", "relative weight of its CPUs; 100 is usual", true),
		attr("occi.compute.memory", "number", "GiB", true),
	}, state("compute", "active", "inactive", "suspended", "error")...)...),
	kind(kindStorage, "Storage: a disk of a VEE", kindResource, []string{"online", "offline"}, append([]rendering.Attribute{
		required(attr("occi.storage.size", "number", "GiB", true)),
	}, state("storage", "online", "offline", "error")...)...),
	kind(kindNetwork, "Network", kindResource, []string{"up", "down"}, append([]rendering.Attribute{
		attr("occi.network.vlan", "number", "802.1q identifier", true),
		attr("occi.network.label", "string", "its name", true),
	}, state("network", "active", "inactive", "error")...)...),
	kind(kindDiskLink, "Link of a compute to its disk", kindLink, nil, append([]rendering.Attribute{
		required(attr("occi.storagelink.deviceid", "string", "device in the guest", true)),
		attr("occi.storagelink.mountpoint", "string", "not known to the site", true),
	}, state("storagelink", "active", "inactive", "error")...)...),
	kind(kindNIC, "Network interface of a compute", kindLink, nil, append([]rendering.Attribute{
		attr("occi.networkinterface.interface", "string", "device in the guest; a wish at creation", true),
		attr("occi.networkinterface.mac", "string", "drawn by the site", false),
	}, state("networkinterface", "active", "inactive", "error")...)...),
}

var mixins = []rendering.Category{
	mixin(mixinIP, "IP network", kindNetwork,
		attr("occi.network.address", "string", "CIDR", true), attr("occi.network.gateway", "string", "address", true),
		oneOf(attr("occi.network.allocation", "string", "how addresses are given out", true), "dynamic", "static")),
	mixin(mixinIPNIC, "IP network interface", kindNIC,
		attr("occi.networkinterface.address", "string", "drawn by the site", false),
		attr("occi.networkinterface.gateway", "string", "of the network", false),
		oneOf(attr("occi.networkinterface.allocation", "string", "how the guest gets it", false), "dynamic", "static")),
	mixin(mixinOS, "OS template: an image of the site", kindCompute),
	mixin(mixinSize, "Resource template: cores and memory", kindCompute),
	mixin(mixinSSHKey, "SSH key for the guest's first user", kindCompute,
		required(attr("occi.credentials.ssh.publickey", "string", "a line as in authorized_keys", true))),
	mixin(mixinUserData, "What the guest runs at its first boot", kindCompute,
		required(attr("occi.compute.userdata", "string", "cloud-init user data, as it is or in base64; shown in base64", true))),
}

var actionCategories = []rendering.Category{
	action("compute", "start", "Start"),
	action("compute", "stop", "Shut down; its disks are kept", oneOf(attr("method", "string", "each gives the guest its time, then ends it", true), "graceful", "acpioff", "poweroff")),
	action("compute", "restart", "Stop, then start", oneOf(attr("method", "string", "each stops and starts", true), "graceful", "warm", "cold")),
	action("compute", "suspend", "Hold, with its memory", oneOf(attr("method", "string", "hibernate saves the memory and frees the host (the default), suspend leaves it there", true), "hibernate", "suspend")),
	action("compute", "save", "Make an OS template of it (not supported)", oneOf(attr("method", "string", "", true), "hot", "deferred"), attr("name", "string", "of the template", true)),
	action("storage", "online", "Follows its compute"),
	action("storage", "offline", "Follows its compute"),
	action("network", "up", "Belongs to the site"),
	action("network", "down", "Belongs to the site"),
}
