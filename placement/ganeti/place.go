package ganeti

import "math"

// Place a new instance on the node that leaves the best score, as Ganeti's hail does, and add
// it to the cluster. It answers with the node's index, or -1 where none takes it.
func (c *Cluster) Place(x Instance) int {
	b := newBalancer(c)
	i := len(c.Instances)
	x.Node = -1
	c.Instances = append(c.Instances, x)
	least := math.Inf(1)
	for _, k := range b.online {
		if !b.fits(k, i) {
			continue
		}
		t, more := b.tally, b.with(k, i, 1)
		if t.change(&b.value[k], &more); t.score() < least {
			least, x.Node = t.score(), k
		}
	}
	c.Instances = c.Instances[:i]
	if x.Node >= 0 {
		c.Put(x, x.Node)
	}
	return x.Node
}

// Put a new instance on a node; false: the node has not what it needs.
func (c *Cluster) Put(x Instance, node int) bool {
	n := &c.Nodes[node]
	if n.FreeMemory < x.Memory || n.FreeDisk < x.Disk {
		return false
	}
	x.Node, x.Running, x.before, x.after = node, true, []string{"running", "Y"}, []string{"", "ext", "", "1"}
	n.FreeMemory -= x.Memory
	n.FreeDisk -= x.Disk
	c.Instances = append(c.Instances, x)
	return true
}
