package manifest

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, got) {
		t.Errorf("%s differs; got:\n%s", file, got)
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func mustParse(t *testing.T, name string, text []byte) *Service {
	t.Helper()
	s, err := Parse(name, text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// bothWays writes s in both forms and reads it back from each.
func bothWays(t *testing.T, s *Service) (yaml, ovf []byte) {
	t.Helper()
	yaml, err := s.YAML()
	if err != nil {
		t.Fatal(err)
	}
	if got := mustParse(t, "written.yaml", yaml); !reflect.DeepEqual(got, s) {
		t.Fatalf("YAML lost something:\n%s\n%+v\n%+v", yaml, s, got)
	}
	ovf, err = s.OVF()
	if err != nil {
		t.Fatal(err)
	}
	if got := mustParse(t, "written.ovf", ovf); !reflect.DeepEqual(got, s) {
		y, _ := got.YAML()
		t.Fatalf("OVF lost something:\n%s\nbefore:\n%s\nafter:\n%s", ovf, yaml, y)
	}
	return yaml, ovf
}

// TestConvert holds every manifest of testdata against what it becomes in both forms.
func TestConvert(t *testing.T) {
	files, err := filepath.Glob("testdata/valid/*")
	if err != nil || len(files) == 0 {
		t.Fatal("no manifests in testdata", err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			s := mustParse(t, file, read(t, file))
			yaml, ovf := bothWays(t, s)
			golden(t, "testdata/golden/"+filepath.Base(file)+".yaml", yaml)
			golden(t, "testdata/golden/"+filepath.Base(file)+".ovf", ovf)
			var said bytes.Buffer
			for _, part := range []struct {
				title string
				list  []string
			}{{"not yet in effect", s.NotInEffect()}, {"warning", s.Warnings()}, {"ignored", s.Ignored()}} {
				for _, line := range part.list {
					said.WriteString(part.title + ": " + line + "\n")
				}
			}
			golden(t, "testdata/golden/"+filepath.Base(file)+".txt", said.Bytes())
		})
	}
}

func TestExamplesAreTheSame(t *testing.T) {
	y := mustParse(t, "web.yaml", read(t, "../examples/web/web.yaml"))
	o := mustParse(t, "web.ovf", read(t, "../examples/web/web.ovf"))
	if !reflect.DeepEqual(y, o) {
		t.Fatalf("web.yaml and web.ovf differ:\n%+v\n%+v", y, o)
	}
	if n := y.NotInEffect(); len(n) > 0 {
		t.Errorf("the first example asks for what is not in effect: %v", n)
	}
	bothWays(t, y)
}

// TestEverythingIsEverything keeps everything.yaml true to its name: no field of the model
// is unset throughout.
func TestEverythingIsEverything(t *testing.T) {
	s := mustParse(t, "everything.yaml", read(t, "testdata/valid/everything.yaml"))
	set := map[string]bool{}
	var walk func(v reflect.Value)
	walk = func(v reflect.Value) {
		switch v.Kind() {
		case reflect.Pointer:
			if !v.IsNil() {
				walk(v.Elem())
			}
		case reflect.Slice:
			for i := range v.Len() {
				walk(v.Index(i))
			}
		case reflect.Struct:
			for _, f := range reflect.VisibleFields(v.Type()) {
				if f.Anonymous {
					continue
				}
				x := v.FieldByIndex(f.Index)
				name := v.Type().Name() + "." + f.Name
				set[name] = set[name] || !x.IsZero()
				walk(x)
			}
		}
	}
	walk(reflect.ValueOf(s).Elem())
	for name, ok := range set {
		if !ok && !strings.HasPrefix(name, "Extra.") && name != "Component.Extra" {
			t.Errorf("%s is never set", name)
		}
	}
}
