package vmi

import (
	"context"
	"net/http"

	"github.com/reservoir-cloud/reservoir/account"
	"github.com/reservoir-cloud/reservoir/internal/httpapi"
	"github.com/reservoir-cloud/reservoir/internal/identity"
	"github.com/reservoir-cloud/reservoir/vee"
)

// AccountingRegistration asks for accounting information on some VEEs.
type AccountingRegistration struct {
	IDs        []vee.ID `json:"ids" minItems:"1" maxItems:"1000"`
	IntervalMS int64    `json:"intervalMs" minimum:"1000" maximum:"2678400000" doc:"a message for each VEE so often, ms"`
	// URL that the messages are sent to by POST. Empty: the caller is a part of the same
	// process.
	URL string `json:"url,omitempty" doc:"https://…; one that the site's operator has allowed"`
}

// AccountingMessage is what one VEE has used in an interval. The intervals of a VEE adjoin:
// the first begins with its life, each begins where the one before ended, the last one is
// marked. A message whose receipt was not confirmed comes again exactly as it was, with the
// same Seq; what was used meanwhile is in the next one.
type AccountingMessage struct {
	VEE      vee.ID `json:"vee"`
	Customer string `json:"customer,omitempty"`
	GroupID  string `json:"groupID,omitempty"`
	Seq      uint64 `json:"seq" doc:"1, 2, 3, …: of the same listener and VEE"`
	FromMS   int64  `json:"fromMs" doc:"begin of the interval, ms since 1970 UTC"`
	ToMS     int64  `json:"toMs" doc:"its end, which is not part of it"`
	Final    bool   `json:"final,omitempty" doc:"the VEE was destroyed: there will be no other"`
	// Used in the interval.
	Used account.Usage `json:"used"`
}

// Accounting is the VEE Accounting Interface (seed 5, section 2.7.3).
type Accounting interface {
	// RegisterAccountingInformationListener has the caller sent what each VEE uses, at every
	// interval, also when it used nothing. A second registration for the same VEE changes
	// the interval and the URL. Errors, for the whole call: Denied, NotFound, Malformed.
	RegisterAccountingInformationListener(ctx context.Context, r AccountingRegistration) error
	// DeregisterAccountingInformationListener ends that; for VEEs that the caller does not
	// listen to it does nothing. Errors, for the whole call: NotFound, Denied.
	DeregisterAccountingInformationListener(ctx context.Context, ids []vee.ID) error
}

// AccountingListener receives accounting information.
type AccountingListener interface {
	// ReceiveAccountingInformation keeps messages; nil confirms all of them.
	ReceiveAccountingInformation(ctx context.Context, messages []AccountingMessage) error
}

const (
	listenersPath  = "/vmi/v1/accounting-listeners"
	accountingPath = "/vmi/v1/accounting"
)

type messagesBody struct {
	Messages []AccountingMessage `json:"messages" minItems:"1" maxItems:"1000"`
}

func registerAccounting(s *httpapi.Server, svc Accounting) {
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "POST", Path: listenersPath, Summary: "RegisterAccountingInformationListener", Roles: writers},
		func(ctx context.Context, in *struct{ Body AccountingRegistration }) error {
			concerns(ctx, in.Body.IDs)
			return svc.RegisterAccountingInformationListener(ctx, in.Body)
		})
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "POST", Path: listenersPath + "/deregister", Summary: "DeregisterAccountingInformationListener", Roles: writers},
		func(ctx context.Context, in *struct{ Body idsBody }) error {
			concerns(ctx, in.Body.IDs)
			return svc.DeregisterAccountingInformationListener(ctx, in.Body.IDs)
		})
}

// RegisterAccountingListener serves l as the listener of another site's VEE Manager.
func RegisterAccountingListener(s *httpapi.Server, l AccountingListener) {
	httpapi.RegisterNoBody(s, httpapi.Op{Method: "POST", Path: accountingPath, Summary: "ReceiveAccountingInformation", Roles: []identity.Role{identity.SiteRole}},
		func(ctx context.Context, in *struct{ Body messagesBody }) error {
			return l.ReceiveAccountingInformation(ctx, in.Body.Messages)
		})
}

func (c client) RegisterAccountingInformationListener(ctx context.Context, r AccountingRegistration) error {
	return c.c.Call(ctx, http.MethodPost, listenersPath, nil, r, nil)
}

func (c client) DeregisterAccountingInformationListener(ctx context.Context, ids []vee.ID) error {
	return c.c.Call(ctx, http.MethodPost, listenersPath+"/deregister", nil, idsBody{ids}, nil)
}

type listenerClient struct {
	c    *httpapi.Client
	path string
}

// NewAccountingListener sends messages to path of the server behind c; an empty path is
// where RegisterAccountingListener serves.
func NewAccountingListener(c *httpapi.Client, path string) AccountingListener {
	if path == "" {
		path = accountingPath
	}
	return listenerClient{c, path}
}

func (l listenerClient) ReceiveAccountingInformation(ctx context.Context, messages []AccountingMessage) error {
	return l.c.Call(ctx, http.MethodPost, l.path, nil, messagesBody{messages}, nil)
}
