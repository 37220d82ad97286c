package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/reservoir-cloud/reservoir/placement/ganeti"
)

// hail is where Debian's ganeti-htools has it: it is a plug-in.
const hail = "/usr/lib/ganeti/iallocators/hail"

// newcomers are placed one after the other beside hail.
const newcomers = 5

// request to place an instance, as Ganeti sends it to hail. The cluster is in a file.
type request struct {
	ClusterTags       []string       `json:"cluster_tags"`
	EnabledHypervisor []string       `json:"enabled_hypervisors"`
	NodeGroups        map[string]any `json:"nodegroups"`
	Nodes             map[string]any `json:"nodes"`
	Instances         map[string]any `json:"instances"`
	Request           struct {
		Type         string           `json:"type"`
		Name         string           `json:"name"`
		Memory       int64            `json:"memory"`
		VCPUs        int64            `json:"vcpus"`
		Spindles     int              `json:"spindle_use"`
		Disks        []map[string]any `json:"disks"`
		DiskTotal    int64            `json:"disk_space_total"`
		DiskTemplate string           `json:"disk_template"`
		NICs         []string         `json:"nics"`
		Nodes        int              `json:"required_nodes"`
		Tags         []string         `json:"tags"`
		Hypervisor   string           `json:"hypervisor"`
		OS           string           `json:"os"`
	} `json:"request"`
}

func requestFor(x ganeti.Instance) request {
	none := map[string]any{}
	r := request{ClusterTags: []string{}, EnabledHypervisor: []string{"kvm"}, NodeGroups: none, Nodes: none, Instances: none}
	q := &r.Request
	q.Type, q.Name, q.Memory, q.VCPUs, q.Spindles, q.Nodes = "allocate", x.Name, x.Memory, x.CPUs, 1, 1
	q.Disks, q.DiskTotal, q.DiskTemplate = []map[string]any{{"size": x.Disk, "mode": "w"}}, x.Disk, "ext"
	q.NICs, q.Tags, q.Hypervisor, q.OS = []string{}, []string{}, "kvm", "any"
	return r
}

// place instances into the cluster, hail's way and ours: seconds of each, reading the file
// counted, and what hbal scores the result.
func (r *clusterResult) place(dir, path string) error {
	theirs, ours := filepath.Join(dir, "hail"), filepath.Join(dir, "placed")
	for _, file := range []string{theirs, ours} {
		c, err := readCluster(path)
		if err != nil {
			return err
		}
		if err := writeCluster(file, c); err != nil {
			return err
		}
	}
	for n := range newcomers {
		x := ganeti.Instance{Name: fmt.Sprint("new", n), Memory: 1024 << (n % 3), Disk: 10240, CPUs: int64(1 + n%4)}
		begin := time.Now()
		node, err := askHail(dir, theirs, x)
		r.hailSeconds += time.Since(begin).Seconds()
		if err != nil {
			return err
		}
		c, err := readCluster(theirs)
		if err != nil {
			return err
		}
		at := slices.IndexFunc(c.Nodes, func(n ganeti.Node) bool { return n.Name == node })
		if at < 0 || !c.Put(x, at) {
			return fmt.Errorf("hail places instance %s on node %q, which does not take it", x.Name, node)
		}
		if err := writeCluster(theirs, c); err != nil {
			return err
		}
		begin = time.Now()
		if c, err = readCluster(ours); err != nil {
			return err
		}
		k := c.Place(x)
		r.placeSeconds += time.Since(begin).Seconds()
		if k < 0 {
			return fmt.Errorf("no node takes instance %s", x.Name)
		}
		if err := writeCluster(ours, c); err != nil {
			return err
		}
	}
	for file, score := range map[string]*float64{theirs: &r.hail, ours: &r.placed} {
		out, err := run1("hbal", "-t", file, "-v", "-l", "0")
		if err != nil {
			return err
		}
		if *score, err = number(out, `Initial score: ([0-9.]+)`); err != nil {
			return err
		}
	}
	return nil
}

// askHail for a node.
func askHail(dir, cluster string, x ganeti.Instance) (node string, err error) {
	in, err := json.Marshal(requestFor(x))
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, "request")
	if err := os.WriteFile(file, in, 0o600); err != nil {
		return "", err
	}
	out, err := run1(hail, "-t", cluster, file)
	if err != nil {
		return "", err
	}
	var answer struct {
		Success bool     `json:"success"`
		Info    string   `json:"info"`
		Result  []string `json:"result"`
	}
	if err := json.Unmarshal([]byte(out), &answer); err != nil || !answer.Success || len(answer.Result) != 1 {
		return "", fmt.Errorf("hail answers %q: %w", out, err)
	}
	return answer.Result[0], nil
}
