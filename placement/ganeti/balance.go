package ganeti

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
)

// The parts of the score that moves of such instances change: the standard deviations over
// nodes of the share of memory and of disk that is free, of vCPUs for each CPU, and of the
// load, which without measurements is the number of instances in four guises (man hbal,
// "cluster scoring"; the weights as `hbal -v -v` prints them, those of the same part added
// up).
const parts = 4

var weights = [parts]float64{1, 1, 1, 4}

// tally of the cluster's nodes: sums from which the deviations follow.
type tally struct {
	n     float64
	sum   [parts]float64
	sumSq [parts]float64
}

func (t *tally) score() (s float64) {
	for p, w := range weights {
		s += w * t.deviation(p)
	}
	return s
}

func (t *tally) deviation(p int) float64 {
	mean := t.sum[p] / t.n
	return math.Sqrt(max(0, t.sumSq[p]/t.n-mean*mean))
}

// change the value of a node from x to y.
func (t *tally) change(x, y *[parts]float64) {
	for p := range parts {
		t.sum[p] += y[p] - x[p]
		t.sumSq[p] += y[p]*y[p] - x[p]*x[p]
	}
}

// balancer is a cluster while it is balanced.
type balancer struct {
	c      *Cluster
	tally  tally
	value  [][parts]float64 // by node
	unit   [][parts]float64 // by node: what an instance with 1 of each changes
	online []int
	home   []int // by instance, at the beginning
	on     [][]int
}

// Score of the cluster as hbal computes it, for what this package knows of.
func (c *Cluster) Score() float64 { return newBalancer(c).tally.score() }

func newBalancer(c *Cluster) *balancer {
	b := &balancer{c: c, value: make([][parts]float64, len(c.Nodes)), unit: make([][parts]float64, len(c.Nodes)), on: make([][]int, len(c.Nodes))}
	for i, x := range c.Instances {
		b.home = append(b.home, x.Node)
		b.on[x.Node] = append(b.on[x.Node], i)
	}
	for k, n := range c.Nodes {
		share := func(of int64) float64 { return 1 / float64(max(1, of)) }
		b.unit[k] = [parts]float64{-share(n.Memory), -share(n.Disk), share(n.CPUs), 1}
		v := &b.value[k]
		v[0], v[1] = float64(n.FreeMemory)*share(n.Memory), float64(n.FreeDisk)*share(n.Disk)
		v[2] = float64(n.OwnCPUs) * share(n.CPUs)
		for _, i := range b.on[k] {
			v[2] += float64(c.Instances[i].CPUs) * share(n.CPUs)
			v[3]++
		}
		if !n.Offline {
			b.online = append(b.online, k)
			b.tally.n++
			b.tally.change(&[parts]float64{}, v)
		}
	}
	b.tally.n = max(1, b.tally.n)
	return b
}

// with instance i added (by 1) or taken away (by -1), what node k's values are.
func (b *balancer) with(k, i int, by float64) [parts]float64 {
	x, v, u := &b.c.Instances[i], b.value[k], &b.unit[k]
	v[0] += by * float64(x.Memory) * u[0]
	v[1] += by * float64(x.Disk) * u[1]
	v[2] += by * float64(x.CPUs) * u[2]
	v[3] += by
	return v
}

// fits tells whether node k takes instance i; hbal lets vCPUs be overbooked four times.
func (b *balancer) fits(k, i int) bool {
	n, x := &b.c.Nodes[k], &b.c.Instances[i]
	return !n.Offline && !n.Drained && n.FreeMemory >= x.Memory && n.FreeDisk >= x.Disk &&
		b.value[k][2]*float64(n.CPUs)+float64(x.CPUs) <= overbooking*float64(n.CPUs)
}

const overbooking = 4

// after is the score with instance i on node k.
func (b *balancer) after(i, k int) float64 {
	t, from := b.tally, b.c.Instances[i].Node
	less, more := b.with(from, i, -1), b.with(k, i, 1)
	t.change(&b.value[from], &less)
	t.change(&b.value[k], &more)
	return t.score()
}

func (b *balancer) move(i, k int) {
	from := b.c.Instances[i].Node
	less, more := b.with(from, i, -1), b.with(k, i, 1)
	b.tally.change(&b.value[from], &less)
	b.tally.change(&b.value[k], &more)
	b.value[from], b.value[k] = less, more
	b.on[from] = slices.DeleteFunc(b.on[from], func(j int) bool { return j == i })
	b.on[k] = append(b.on[k], i)
	b.c.Move(i, k)
}

// Balance the cluster with at most so many migrations (0: any number), as hbal does: one
// after the other while each gains enough. Then it looks for better ones in their place: the
// same instance to another node, another instance of the same node. It returns how many
// instances have another node than before.
func (c *Cluster) Balance(most int, seed uint64) (moved int) {
	b := newBalancer(c)
	for n := 0; most == 0 || n < most; n++ {
		before := b.tally.score()
		i, k, after := b.best()
		if i < 0 || before < enough && before-after < gain {
			break
		}
		b.move(i, k)
	}
	b.refine(rand.New(rand.NewPCG(seed, 0)))
	for i, x := range c.Instances {
		if x.Node != b.home[i] {
			moved++
		}
	}
	return moved
}

// hbal's --min-gain-limit and --min-gain.
const enough, gain = .1, .01

// Breadth of the search for one move.
const sources, targets = 48, 24

type rated struct {
	i    int
	cost float64
}

// best single move: of the instances that it helps most to take away, and the nodes that it
// hurts least to give them to, by the slope of the score, the pair with the best score.
func (b *balancer) best() (instance, node int, score float64) {
	var slope [parts]float64 // of the score by a node's square deviation
	var mean [parts]float64
	for p, w := range weights {
		mean[p] = b.tally.sum[p] / b.tally.n
		slope[p] = w / (2 * b.tally.n * max(b.tally.deviation(p), 1e-3))
	}
	cost := func(x, y *[parts]float64) (c float64) {
		for p := range parts {
			c += slope[p] * (y[p] - x[p]) * (y[p] + x[p] - 2*mean[p])
		}
		return c
	}
	var from []rated
	for _, k := range b.online {
		for _, i := range b.on[k] {
			less := b.with(k, i, -1)
			from = append(from, rated{i, cost(&b.value[k], &less)})
		}
	}
	from = least(from, sources)
	instance, node, score = -1, -1, b.tally.score()-1e-12
	to := make([]rated, 0, len(b.online))
	for _, f := range from {
		to = to[:0]
		for _, k := range b.online {
			if k != b.c.Instances[f.i].Node && b.fits(k, f.i) {
				more := b.with(k, f.i, 1)
				to = append(to, rated{k, cost(&b.value[k], &more)})
			}
		}
		for _, t := range least(to, targets) {
			if s := b.after(f.i, t.i); s < score {
				instance, node, score = f.i, t.i, s
			}
		}
	}
	return instance, node, score
}

// least n of the list, unordered.
func least(list []rated, n int) []rated {
	if len(list) <= n {
		return list
	}
	heap := slices.Clone(list[:n]) // its worst is found by looking: n is small
	worst := func() int {
		w := 0
		for i := range heap {
			if heap[i].cost > heap[w].cost {
				w = i
			}
		}
		return w
	}
	w := worst()
	for _, x := range list[n:] {
		if x.cost < heap[w].cost {
			heap[w] = x
			w = worst()
		}
	}
	slices.SortFunc(heap, func(a, b rated) int { return cmp.Or(cmp.Compare(a.cost, b.cost), cmp.Compare(a.i, b.i)) })
	return heap
}

// refine the moves that were made without making more: until a round over all of them
// finds nothing better.
func (b *balancer) refine(random *rand.Rand) {
	const tries = 400 // of each moved instance in a round
	for better, round := true, 0; better && round < 20; round++ {
		better = false
		for i, x := range b.c.Instances {
			if x.Node == b.home[i] {
				continue
			}
			for range tries {
				if b.retarget(i, random) || b.replace(i, random) {
					better = true
				}
				if b.c.Instances[i].Node == b.home[i] {
					break
				}
			}
		}
	}
}

const better = 1e-9

// retarget a moved instance to a random node.
func (b *balancer) retarget(i int, random *rand.Rand) bool {
	k := b.online[random.IntN(len(b.online))]
	if k == b.c.Instances[i].Node || k != b.home[i] && !b.fits(k, i) || b.after(i, k) > b.tally.score()-better {
		return false
	}
	b.move(i, k)
	return true
}

// replace a moved instance by another that is still at home, perhaps on another node: the one
// goes home, the other to where it was.
func (b *balancer) replace(i int, random *rand.Rand) bool {
	j := random.IntN(len(b.c.Instances))
	if home := b.on[b.home[i]]; len(home) > 0 && random.IntN(2) == 0 {
		j = home[random.IntN(len(home))]
	}
	at, was := b.c.Instances[i].Node, b.c.Instances[j].Node
	if j == i || was != b.home[j] || was == at || b.c.Nodes[was].Offline {
		return false
	}
	before := b.tally.score()
	b.move(i, b.home[i])
	if b.fits(at, j) && b.after(j, at) < before-better && b.sound(b.home[i]) {
		b.move(j, at)
		return true
	}
	b.move(i, at)
	return false
}

// sound tells whether node k has no more than it has room for.
func (b *balancer) sound(k int) bool {
	n := &b.c.Nodes[k]
	return n.FreeMemory >= 0 && n.FreeDisk >= 0 && b.value[k][2] <= overbooking
}
