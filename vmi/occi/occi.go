// Package occi is the Open Cloud Computing Interface 1.2 as a second face of a site's VEE
// Manager: HTTP protocol GFD.223, core model GFD.221, infrastructure GFD.224. It stands on
// vmi.Service alone, keeps nothing of its own but the mixins that clients define, and decides
// nothing: what OCCI has no words for is asked for over the VMI.
//
// A compute is a VEE, whoever made it; its storages and links are the disks and NICs of the
// descriptor, and the networks are the site's. What OCCI knows of a compute and the VMI does
// not (its title, its key) is kept in a file of the VEE's context, occi.json.
//
//	catalogue.go  the categories: kinds, actions, mixins, templates
//	entity.go     VEEs as entities
//	order.go      an entity that is to be created, as a descriptor
//	action.go     actions, deletion
//	update.go     changes of a compute or a storage
//	selection.go  filters and pages
//	tag.go        mixins that clients define
//	route.go      what a request is about
//	http.go       the protocol: who may, media types, errors
//
// The renderings are in the package rendering.
package occi

import (
	"context"
	"log/slog"
	"net/http"
	"net/netip"

	"github.com/reservoir-cloud/reservoir/image"
	"github.com/reservoir-cloud/reservoir/vmi"
)

// Base is the path that everything is under. Discovery is also at the two paths that the
// protocol names (GFD.223, "HTTP Methods Applied to Query Interface").
const (
	Base      = "/occi/v1.2"
	QueryPath = "/-/"
	WellKnown = "/.well-known/org/ogf/occi/-/"
)

// Images lists the site's images: each is an OS template.
type Images interface {
	List(context.Context) ([]image.Info, error)
}

// Network of the site.
type Network struct {
	Name    string
	Subnet  netip.Prefix
	Gateway netip.Addr // zero: none
}

// Config of the handler.
type Config struct {
	Service vmi.Service
	Images  Images
	Tags    Tags
	// Networks of the site; a compute whose maker names none is plugged into the first.
	Networks []Network
	Version  string // of the software, for the Server header
	Log      *slog.Logger
}

// Handler serves Base and both query paths. Who calls is identity.From of the request's
// context; callers without a role are refused.
func Handler(c Config) http.Handler { return &handler{c} }
