// Package storetest is an etcd of its own for tests of what keeps its record on a cluster
// elsewhere (store.Config.Endpoints). It is as etcd is by default, but for its addresses.
package storetest

import (
	"net/url"
	"os"
	"path/filepath"
	"testing"

	"go.etcd.io/etcd/server/v3/embed"
)

// Serve one until t ends. Its endpoint is a Unix socket.
func Serve(t testing.TB) (endpoint string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "etcd") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	at := url.URL{Scheme: "unix", Path: filepath.Join(dir, "socket")}
	c := embed.NewConfig()
	c.Name, c.Dir, c.LogLevel = "elsewhere", filepath.Join(dir, "etcd"), "fatal"
	c.ListenPeerUrls, c.ListenClientUrls, c.AdvertiseClientUrls = nil, []url.URL{at}, []url.URL{at}
	c.AdvertisePeerUrls = []url.URL{{Scheme: "http", Host: "localhost:2380"}} // a name only
	c.InitialCluster = c.InitialClusterFromName(c.Name)
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	return at.String()
}
