package sm

import (
	"context"
	"reflect"
	"sync"

	"github.com/reservoir-cloud/reservoir/smi"
)

// views are the services as they were shown last, and who watches them.
type views struct {
	mu       sync.Mutex
	last     map[string]smi.Service // by the record's key
	watchers map[*watcher]bool
	quit     chan struct{} // closed when the manager stops: watchers must watch anew
	running  sync.WaitGroup
}

func newViews() *views {
	return &views{last: map[string]smi.Service{}, watchers: map[*watcher]bool{}, quit: make(chan struct{})}
}

// watcher holds what its reader has not fetched yet: of each service the newest only.
type watcher struct {
	match func(customer, name string) bool
	order []string
	todo  map[string]smi.Service
	news  chan struct{}
}

func (w *watcher) add(key string, s smi.Service) {
	if _, there := w.todo[key]; !there {
		w.order = append(w.order, key)
	}
	w.todo[key] = s
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// publish shows a service to those who watch it, where it looks different from before.
func (m *Manager) publish(s smi.Service) {
	v := m.views
	v.mu.Lock()
	defer v.mu.Unlock()
	key := recordKey(s.Customer, s.Name)
	if reflect.DeepEqual(v.last[key], s) {
		return
	}
	if v.last[key] = s; gone(s) {
		delete(v.last, key)
	}
	for w := range v.watchers {
		if w.match(s.Customer, s.Name) {
			w.add(key, s)
		}
	}
}

// gone reports whether s is the last word on a deleted service.
func gone(s smi.Service) bool { return s.Phase == smi.Deleting && len(s.Components) == 0 }

// watch sends what match selects as it is, then each change, until ctx or the
// manager ends.
func (v *views) watch(ctx context.Context, match func(customer, name string) bool) <-chan smi.Service {
	w := &watcher{match: match, todo: map[string]smi.Service{}, news: make(chan struct{}, 1)}
	v.mu.Lock()
	for key, s := range v.last {
		if match(s.Customer, s.Name) {
			w.add(key, s)
		}
	}
	out := make(chan smi.Service)
	select {
	case <-v.quit:
		v.mu.Unlock()
		close(out)
		return out
	default:
	}
	v.watchers[w] = true
	v.running.Add(1) // under the lock that close takes before it waits
	v.mu.Unlock()
	go func() {
		defer v.running.Done()
		defer close(out)
		defer func() {
			v.mu.Lock()
			delete(v.watchers, w)
			v.mu.Unlock()
		}()
		for {
			select {
			case <-ctx.Done():
				return
			case <-v.quit:
				return
			case <-w.news:
			}
			for _, s := range v.take(w) {
				select {
				case out <- s:
				case <-ctx.Done():
					return
				case <-v.quit:
					return
				}
			}
		}
	}()
	return out
}

// close ends all watches and waits for them.
func (v *views) close() {
	v.mu.Lock()
	close(v.quit)
	v.mu.Unlock()
	v.running.Wait()
}

// of is the view of a service whose record has this version.
func (v *views) of(key string, version uint64) (smi.Service, bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	s, ok := v.last[key]
	return s, ok && s.Version == version
}

func (v *views) take(w *watcher) (list []smi.Service) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, key := range w.order {
		list = append(list, w.todo[key])
	}
	w.order = nil
	clear(w.todo)
	return list
}

// matcher of a watch's customer ("": all) and name ("": all).
func matcher(customer, name string) func(c, n string) bool {
	return func(c, n string) bool {
		return (customer == "" || c == customer) && (name == "" || n == name)
	}
}
