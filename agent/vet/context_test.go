package vet

import (
	"testing"

	"github.com/reservoir-cloud/reservoir/vee"
)

func TestSeed(t *testing.T) {
	d := vee.Descriptor{
		Name:    "web-1",
		Context: map[string]string{"meta-data": "instance-id: mine\n"},
		NICs: []vee.NIC{
			{Network: "public", Public: true, MAC: "02:52:0a:50:00:02", Address: "10.80.0.2/16", Gateway: "10.80.0.1", Domain: "shop.alpha.internal"},
			{Network: "back", Target: "inner", MAC: "02:52:0a:09:00:02", Address: "10.9.0.2/20", Address6: "fd00:9::2/64",
				Gateway6: "fd00:9::1", DNS: []string{"10.9.0.1", "fd00:9::1"}, Domain: "shop.alpha.internal", MTU: 1370},
			{Network: "late", MAC: "02:52:00:00:00:01"},
		},
	}
	files := seed("alpha.k3v9q2m7xd", d, func(n vee.NIC) []string {
		if n.Public {
			return []string{"10.80.0.11"}
		}
		return nil
	})
	if len(files) != 3 || files["meta-data"] != "instance-id: mine\n" || files["user-data"] != "#cloud-config\n{}\n" {
		t.Errorf("files %v", files)
	}
	const want = `{
  "ethernets": {
    "eth0": {
      "match": {
        "macaddress": "02:52:0a:50:00:02"
      },
      "set-name": "eth0",
      "dhcp4": false,
      "dhcp6": false,
      "addresses": [
        "10.80.0.2/16"
      ],
      "routes": [
        {
          "to": "0.0.0.0/0",
          "via": "10.80.0.1"
        }
      ],
      "nameservers": {
        "addresses": [
          "10.80.0.11"
        ],
        "search": [
          "shop.alpha.internal",
          "alpha.internal"
        ]
      }
    },
    "eth2": {
      "match": {
        "macaddress": "02:52:00:00:00:01"
      },
      "set-name": "eth2",
      "dhcp4": true,
      "dhcp6": false
    },
    "inner": {
      "match": {
        "macaddress": "02:52:0a:09:00:02"
      },
      "set-name": "inner",
      "mtu": 1370,
      "dhcp4": false,
      "dhcp6": false,
      "accept-ra": false,
      "addresses": [
        "10.9.0.2/20",
        "fd00:9::2/64"
      ],
      "routes": [
        {
          "to": "::/0",
          "via": "fd00:9::1"
        }
      ],
      "nameservers": {
        "addresses": [
          "10.9.0.1",
          "fd00:9::1"
        ],
        "search": [
          "shop.alpha.internal",
          "alpha.internal"
        ]
      }
    }
  },
  "version": 2
}
`
	if got := files["network-config"]; got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	if len(d.Context) != 1 || d.NICs[0].DNS != nil {
		t.Error("the descriptor itself was changed")
	}
}
