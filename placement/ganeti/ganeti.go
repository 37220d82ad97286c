// Package ganeti reads and writes clusters in the text form of Ganeti's htools (`hbal -t`;
// man htools, "text backend"), as models, and balances one by Ganeti's own score, so that
// the two can be compared on the same files.
//
// It is for clusters whose instances can start on any node: shared or external storage.
// Fields that it has no use for are kept as they were.
package ganeti

import (
	"bufio"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/reservoir-cloud/reservoir/placement/model"
)

// Node of a cluster. Memory and disk are MiB.
type Node struct {
	Name             string
	Memory           int64 // in all
	Own              int64 // of which the node itself uses
	FreeMemory       int64
	Disk, FreeDisk   int64
	CPUs, OwnCPUs    int64 // OwnCPUs are those that the node itself uses
	Offline, Drained bool
	rest             []string // further fields
}

// Instance on a node. Memory and disk are MiB.
type Instance struct {
	Name    string
	Memory  int64
	Disk    int64
	CPUs    int64
	Running bool
	Node    int // index
	before  []string
	after   []string // fields behind the primary node
}

// Cluster in the order of its file.
type Cluster struct {
	Nodes     []Node
	Instances []Instance
	groups    []string
	tail      []string // cluster tags, policies and networks
}

const (
	ownCPUs   = 13        // field of a node that older files do not have
	maxFile   = 256 << 20 // bytes
	maxAmount = model.MaxAmount
)

// Read a cluster. Errors name the line.
func Read(r io.Reader) (*Cluster, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read a cluster: %w", err)
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("read a cluster: more than %d bytes", maxFile)
	}
	c := &Cluster{}
	at := map[string]int{}
	section, number := 0, 0
	for line := range strings.Lines(string(text)) {
		number++
		line = strings.TrimSuffix(line, "\n")
		if line == "" && section < 3 {
			section++
			continue
		}
		var err error
		switch section {
		case 0:
			c.groups = append(c.groups, line)
		case 1:
			err = c.addNode(line, at)
		case 2:
			err = c.addInstance(line, at)
		default:
			c.tail = append(c.tail, line)
		}
		if err != nil {
			return nil, fmt.Errorf("read a cluster, line %d: %w", number, err)
		}
	}
	if section < 2 {
		return nil, fmt.Errorf("read a cluster: it has no section of instances: groups, nodes and instances are parted by empty lines")
	}
	return c, nil
}

func amount(what, s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n < 0 || n > maxAmount {
		return 0, fmt.Errorf("%s %q: want a whole number from 0 to %d", what, s, int64(maxAmount))
	}
	return n, nil
}

func (c *Cluster) addNode(line string, at map[string]int) error {
	f := strings.Split(line, "|")
	if len(f) < 9 {
		return fmt.Errorf("a node has %d fields: want name|memory|own|free|disk|free|CPUs|offline|group", len(f))
	}
	n := Node{Name: f[0], Offline: f[7] == "Y", Drained: f[7] == "M", rest: f[8:]}
	if f[7] != "Y" && f[7] != "M" && f[7] != "N" {
		return fmt.Errorf("node %s is offline %q: want Y, N or M", n.Name, f[7])
	}
	var err error
	for i, to := range []*int64{&n.Memory, &n.Own, &n.FreeMemory, &n.Disk, &n.FreeDisk, &n.CPUs} {
		what := []string{"memory", "own memory", "free memory", "disk", "free disk", "CPUs"}[i]
		if *to, err = amount(what+" of node "+n.Name, f[1+i]); err != nil {
			return err
		}
	}
	n.OwnCPUs = 1
	if len(f) > ownCPUs {
		if n.OwnCPUs, err = amount("own CPUs of node "+n.Name, f[ownCPUs]); err != nil {
			return err
		}
	}
	if _, twice := at[n.Name]; twice {
		return fmt.Errorf("there are two nodes %q", n.Name)
	}
	at[n.Name] = len(c.Nodes)
	c.Nodes = append(c.Nodes, n)
	return nil
}

func (c *Cluster) addInstance(line string, at map[string]int) error {
	f := strings.Split(line, "|")
	if len(f) < 10 {
		return fmt.Errorf("an instance has %d fields: want name|memory|disk|CPUs|status|balance|node|secondary|template|tags", len(f))
	}
	i := Instance{Name: f[0], Running: strings.HasPrefix(f[4], "running"), before: f[4:6], after: f[7:]}
	var err error
	for k, to := range []*int64{&i.Memory, &i.Disk, &i.CPUs} {
		if *to, err = amount([]string{"memory", "disk", "CPUs"}[k]+" of instance "+i.Name, f[1+k]); err != nil {
			return err
		}
	}
	if f[7] != "" {
		return fmt.Errorf("instance %s has a secondary node: only such that can start anywhere are known here", i.Name)
	}
	n, known := at[f[6]]
	if !known {
		return fmt.Errorf("instance %s is on node %q, which there is not", i.Name, f[6])
	}
	i.Node = n
	c.Instances = append(c.Instances, i)
	return nil
}

// Write c as Read reads it.
func (c *Cluster) Write(w io.Writer) error {
	b := bufio.NewWriter(w)
	for _, g := range c.groups {
		fmt.Fprintln(b, g)
	}
	fmt.Fprintln(b)
	for _, n := range c.Nodes {
		off := "N"
		if n.Offline {
			off = "Y"
		} else if n.Drained {
			off = "M"
		}
		fmt.Fprintf(b, "%s|%d|%d|%d|%d|%d|%d|%s|%s\n", n.Name, n.Memory, n.Own, n.FreeMemory, n.Disk, n.FreeDisk, n.CPUs, off, strings.Join(n.rest, "|"))
	}
	fmt.Fprintln(b)
	for _, i := range c.Instances {
		fmt.Fprintf(b, "%s|%d|%d|%d|%s|%s|%s\n", i.Name, i.Memory, i.Disk, i.CPUs, strings.Join(i.before, "|"), c.Nodes[i.Node].Name, strings.Join(i.after, "|"))
	}
	fmt.Fprintln(b)
	for _, t := range c.tail {
		fmt.Fprintln(b, t)
	}
	if err := b.Flush(); err != nil {
		return fmt.Errorf("write a cluster: %w", err)
	}
	return nil
}

// Move instance i to node n, with what it has of memory and disk.
func (c *Cluster) Move(i, n int) {
	x := &c.Instances[i]
	from, to := &c.Nodes[x.Node], &c.Nodes[n]
	from.FreeMemory, to.FreeMemory = from.FreeMemory+x.Memory, to.FreeMemory-x.Memory
	from.FreeDisk, to.FreeDisk = from.FreeDisk+x.Disk, to.FreeDisk-x.Disk
	x.Node = n
}

// Model of the cluster: memory and disk that are free or instances have, and CPUs times
// overbooking, without those that nodes use themselves.
func (c *Cluster) Model(overbooking float64) *model.Model {
	m := model.New("memory_mib", "disk_mib", "vcpu")
	used := make([][3]int64, len(c.Nodes))
	for _, i := range c.Instances {
		u := &used[i.Node]
		u[0], u[1], u[2] = u[0]+i.Memory, u[1]+i.Disk, u[2]+i.CPUs
	}
	for k, n := range c.Nodes {
		m.AddHost(model.Host{Name: n.Name, Draining: n.Offline || n.Drained}, n.FreeMemory+used[k][0], n.FreeDisk+used[k][1], max(0, int64(overbooking*float64(n.CPUs))-n.OwnCPUs))
	}
	for _, i := range c.Instances {
		m.AddVEE(model.VEE{Name: i.Name, State: model.Running, Host: int32(i.Node), MemoryMiB: i.Memory}, i.Memory, i.Disk, i.CPUs)
	}
	return m
}
