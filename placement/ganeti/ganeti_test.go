package ganeti

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/reservoir-cloud/reservoir/placement/model"
	"github.com/reservoir-cloud/reservoir/placement/solve"
)

const small = `group|uuid|preferred||

a|16384|512|7680|102400|81920|8|N|uuid|1||N|0|1|1.0
b|16384|512|15872|102400|102400|8|N|uuid|1||N|0|1|1.0
c|16384|512|15872|102400|102400|8|Y|uuid|1||N|0|1|1.0

x|4096|10240|2|running|Y|a||ext||1
y|4096|10240|2|ADMIN_down|N|a||ext|tag|1

htools:iextags:service

group|128,1,1024,1,1,1;32768,8,1048576,16,8,12|
`

func read(t *testing.T, text string) *Cluster {
	t.Helper()
	c, err := Read(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestReadAndWrite(t *testing.T) {
	c := read(t, small)
	if n, i := c.Nodes[0], c.Instances[1]; len(c.Nodes) != 3 || n.FreeMemory != 7680 || n.OwnCPUs != 1 || !c.Nodes[2].Offline || i.Running || i.Disk != 10240 || i.Node != 0 {
		t.Errorf("read %+v", c)
	}
	var out bytes.Buffer
	if err := c.Write(&out); err != nil || out.String() != small {
		t.Errorf("written %v:\n%s", err, out.String())
	}
	m := c.Model(4)
	if err := m.Validate(); err != nil {
		t.Error(err)
	}
	if p := solve.NewPlacer(m, solve.Balance); p.Place(m.AddVEE(model.VEE{Name: "z"}, 8192, 1024, 1)) != 1 {
		t.Error("a large instance did not go to the empty node")
	}
}

func TestBadFiles(t *testing.T) {
	for name, c := range map[string]struct{ old, new, want string }{
		"no sections":     {"\n\n", "\n", "line 8: a node has 1 fields"},
		"no instances":    {small[strings.Index(small, "\n\nx|"):], "", "no section of instances"},
		"short node":      {"a|16384|512|7680|102400|81920|8|N|uuid|1||N|0|1|1.0", "a|16384", "line 3: a node has 2 fields"},
		"negative":        {"|7680|", "|-1|", `free memory of node a "-1"`},
		"enormous":        {"|7680|", "|99999999999999999999|", "free memory of node a"},
		"no number":       {"|7680|", "|NaN|", "free memory of node a"},
		"offline perhaps": {"|8|N|uuid", "|8|?|uuid", "want Y, N or M"},
		"twice":           {"\nb|", "\na|", `two nodes "a"`},
		"nowhere":         {"|Y|a|", "|Y|z|", `on node "z", which there is not`},
		"with secondary":  {"|Y|a||ext", "|Y|a|b|drbd", "secondary node"},
	} {
		if _, err := Read(strings.NewReader(strings.Replace(small, c.old, c.new, 2))); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want it to say %q", name, err, c.want)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(small))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := Read(bytes.NewReader(text))
		if err != nil {
			return
		}
		var one, two bytes.Buffer
		if err := c.Write(&one); err != nil {
			t.Fatal(err)
		}
		again, err := Read(bytes.NewReader(one.Bytes()))
		if err != nil {
			t.Fatalf("what was written is not read: %v\n%s", err, one.Bytes())
		}
		if err := again.Write(&two); err != nil || !bytes.Equal(one.Bytes(), two.Bytes()) {
			t.Fatalf("written again, it differs: %v\n%s\n%s", err, one.Bytes(), two.Bytes())
		}
	})
}

// TestBalance: the score falls, nothing is overloaded that was not, no more moves than
// allowed, and the sums that the search keeps are those of the result.
func TestBalance(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		nodes := rapid.IntRange(2, 8).Draw(t, "nodes")
		var text, instances strings.Builder
		free := make([]int, nodes)
		for k := range free {
			free[k] = 16000
		}
		for i := range rapid.IntRange(0, 40).Draw(t, "instances") {
			mem, k := 1024*rapid.IntRange(1, 3).Draw(t, "memory"), rapid.IntRange(0, nodes-1).Draw(t, "node")
			if free[k] >= mem {
				free[k] -= mem
				fmt.Fprintf(&instances, "i%d|%d|1024|1|running|Y|n%d||ext||1\n", i, mem, k)
			}
		}
		text.WriteString("group|uuid|preferred||\n\n")
		for k := range nodes {
			off := "N"
			if k > 1 && rapid.IntRange(0, 5).Draw(t, "offline") == 0 {
				off = "M"
			}
			fmt.Fprintf(&text, "n%d|16384|384|%d|1048576|900000|16|%s|uuid\n", k, free[k], off)
		}
		c, err := Read(strings.NewReader(text.String() + "\n" + instances.String() + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		before, most := c.Score(), rapid.IntRange(0, 5).Draw(t, "most")
		home := make([]int, len(c.Instances))
		for i, x := range c.Instances {
			home[i] = x.Node
		}
		moved := c.Balance(most, 1)
		if after := c.Score(); after > before+1e-9 || most > 0 && moved > most {
			t.Errorf("score %v before, %v after %d moves of %d", before, after, moved, most)
		}
		for i, x := range c.Instances {
			if x.Node != home[i] {
				moved--
				if c.Nodes[x.Node].Drained {
					t.Errorf("instance %s was moved to a node that takes none", x.Name)
				}
			}
		}
		for _, n := range c.Nodes {
			if n.FreeMemory < 0 || n.FreeDisk < 0 {
				t.Errorf("node %+v is overloaded", n)
			}
		}
		if moved != 0 {
			t.Errorf("%d moves too many were counted", moved)
		}
	})
}

func TestPlace(t *testing.T) {
	c := read(t, small)
	if k := c.Place(Instance{Name: "new", Memory: 2048, Disk: 10240, CPUs: 2}); k != 1 {
		t.Fatalf("placed on node %d, want the empty one that is not offline", k)
	}
	var out bytes.Buffer
	if err := c.Write(&out); err != nil || !strings.Contains(out.String(), "\nnew|2048|10240|2|running|Y|b||ext||1\n") || !strings.Contains(out.String(), "b|16384|512|13824|102400|92160|8|") {
		t.Errorf("written %v:\n%s", err, out.String())
	}
	again := read(t, out.String())
	if a, b := c.Score(), again.Score(); a != b {
		t.Errorf("score %v, and %v once it is read again", a, b)
	}
	if k := c.Place(Instance{Name: "huge", Memory: 20000}); k != -1 || len(c.Instances) != 3 {
		t.Errorf("placed what fits nowhere on node %d", k)
	}
}
