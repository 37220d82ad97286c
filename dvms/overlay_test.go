package dvms

import "testing"

func TestOverlays(t *testing.T) {
	ring := NewRing([]string{"c", "a", "d", "b"})
	near := Nearest{
		{Node: "a", Site: "x"},
		{Node: "b", Site: "x", At: Coordinate{X: .003}},
		{Node: "c", Site: "x", At: Coordinate{X: .001, Height: .001}},
		{Node: "d", Site: "x", Unknown: true},
		{Node: "e", Site: "y"}, // where a is, but at another site
		{Node: "f", Site: "y", Unknown: true},
	}
	for _, c := range []struct {
		over           Overlay
		self           string
		members, tried []string
		want           string
	}{
		{ring, "c", nil, nil, "a"},
		{ring, "b", nil, nil, "c"},
		{ring, "c", []string{"a", "d"}, nil, "b"},
		{ring, "c", []string{"c", "a"}, []string{"d"}, "d"},
		{ring, "c", []string{"a", "b", "c", "d"}, nil, ""},
		{NewRing([]string{"a"}), "a", []string{"a"}, nil, ""},
		{near, "a", nil, nil, "c"},
		{near, "a", []string{"c"}, nil, "b"},
		{near, "a", []string{"c"}, []string{"b"}, "d"},
		{near, "a", []string{"b", "c", "d"}, nil, "e"},
		{near, "a", []string{"b", "c", "d", "e"}, nil, "f"},
		{near, "a", []string{"b", "c", "d"}, []string{"e", "f"}, ""},
		{near, "d", nil, nil, "a"}, // unknown itself: by name, own site first
		{near, "z", nil, nil, ""},
	} {
		if got := c.over.Next(c.self, c.members, c.tried); got != c.want {
			t.Errorf("%T: next of %s outside %v and %v: %q, want %q", c.over, c.self, c.members, c.tried, got, c.want)
		}
	}
}
