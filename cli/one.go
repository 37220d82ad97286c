package cli

import "fmt"

// showOne prints one object: whole, by its name, or as describe does for people.
func (a *app) showOne(f format, object any, name string, describe func() error) error {
	switch f {
	case "json", "yaml":
		return writeObject(a.out, f, object)
	case "name":
		fmt.Fprintln(a.out, name)
		return nil
	}
	return describe()
}

// fact of an object, for people; one that is empty is not told.
type fact struct{ what, is string }

// facts one below the other.
func (a *app) facts(all []fact) {
	width := 0
	for _, x := range all {
		if x.is != "" {
			width = max(width, len(x.what))
		}
	}
	for _, x := range all {
		if x.is != "" {
			a.printf("%-*s  %s\n", width, x.what, x.is)
		}
	}
}
