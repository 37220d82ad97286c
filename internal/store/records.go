package store

import (
	"context"
	"errors"
	"log/slog"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// row is an object as it is kept. One that was deleted has no value.
type row struct {
	key     string
	value   []byte
	version uint64
}

// records keep the rows of a Store: inEtcd or inMemory. Their errors are explained by those
// who call.
type records interface {
	get(ctx context.Context, key string) (r row, there bool, err error)
	// list what is under prefix, in the order of the keys, as it was at one version.
	list(ctx context.Context, prefix string) (rows []row, version uint64, err error)
	// write all ops, or none when a guard does not hold: found then has the version of each
	// op's row, 0 where there is none. It is nil when they were written.
	write(ctx context.Context, ops []Op) (version uint64, found []uint64, err error)
	// deleteRange unless the guard of expected, of verb expect, does not hold: done is false
	// then. nil expects nothing.
	deleteRange(ctx context.Context, from, to string, expected *Op) (done bool, err error)
	// follow sends the changes under prefix after a version, until ctx ends or they are no
	// longer to be had: whoever follows then lists again.
	follow(ctx context.Context, prefix string, after uint64, tell func(row))
}

// inEtcd is a cluster, or the one embedded in this process.
type inEtcd struct {
	client *clientv3.Client
	log    *slog.Logger
}

func rowOf(kv *mvccpb.KeyValue) row {
	return row{key: string(kv.Key), value: kv.Value, version: uint64(kv.ModRevision)}
}

func (e inEtcd) get(ctx context.Context, key string) (row, bool, error) {
	r, err := e.client.Get(ctx, key)
	if err != nil || len(r.Kvs) == 0 {
		return row{}, false, err
	}
	return rowOf(r.Kvs[0]), true, nil
}

// page is how many objects one read brings: a bound on memory, not on the result.
const page = 500

func (e inEtcd) list(ctx context.Context, prefix string) ([]row, uint64, error) {
	for {
		rows, version, err := e.listOnce(ctx, prefix)
		if errors.Is(err, rpctypes.ErrCompacted) {
			continue // compaction overtook a long list: the next one starts from now
		}
		return rows, version, err
	}
}

func (e inEtcd) listOnce(ctx context.Context, prefix string) (rows []row, version uint64, err error) {
	from, end, rev := prefix, clientv3.GetPrefixRangeEnd(prefix), int64(0)
	for {
		octx, cancel := context.WithTimeout(ctx, opTimeout)
		r, err := e.client.Get(octx, from, clientv3.WithRange(end), clientv3.WithLimit(page), clientv3.WithRev(rev))
		cancel()
		if err != nil {
			return nil, 0, err
		}
		if rev == 0 {
			rev = r.Header.Revision
		}
		for _, kv := range r.Kvs {
			rows = append(rows, rowOf(kv))
		}
		if !r.More {
			return rows, uint64(rev), nil
		}
		from = string(r.Kvs[len(r.Kvs)-1].Key) + "\x00"
	}
}

func (e inEtcd) write(ctx context.Context, ops []Op) (version uint64, found []uint64, err error) {
	var guards []clientv3.Cmp
	var then, otherwise []clientv3.Op
	for _, o := range ops {
		guards = append(guards, o.guards()...)
		switch o.verb {
		case create, update, put:
			then = append(then, clientv3.OpPut(o.key, string(o.value)))
		case remove:
			then = append(then, clientv3.OpDelete(o.key))
		}
		otherwise = append(otherwise, clientv3.OpGet(o.key, clientv3.WithKeysOnly()))
	}
	r, err := e.client.Txn(ctx).If(guards...).Then(then...).Else(otherwise...).Commit()
	if err != nil {
		return 0, nil, err
	}
	if r.Succeeded {
		return uint64(r.Header.Revision), nil, nil
	}
	found = make([]uint64, len(ops))
	for i := range ops {
		if kvs := r.Responses[i].GetResponseRange().Kvs; len(kvs) > 0 {
			found[i] = uint64(kvs[0].ModRevision)
		}
	}
	return 0, found, nil
}

// guards are the conditions under which o may happen.
func (o Op) guards() []clientv3.Cmp {
	version := clientv3.ModRevision(o.key)
	switch {
	case o.verb == put:
		return nil
	case o.verb == remove && o.guard == 0:
		return []clientv3.Cmp{clientv3.Compare(version, ">", 0)}
	case o.verb == update && o.guard == 0:
		return []clientv3.Cmp{clientv3.Compare(version, "<", 0)} // no object has version 0
	}
	return []clientv3.Cmp{clientv3.Compare(version, "=", int64(o.guard))}
}

func (e inEtcd) deleteRange(ctx context.Context, from, to string, expected *Op) (done bool, err error) {
	var guards []clientv3.Cmp
	if expected != nil {
		guards = expected.guards()
	}
	r, err := e.client.Txn(ctx).If(guards...).Then(clientv3.OpDelete(from, clientv3.WithRange(to))).Commit()
	if err != nil {
		return false, err
	}
	return r.Succeeded, nil
}

func (e inEtcd) follow(ctx context.Context, prefix string, after uint64, tell func(row)) {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for r := range e.client.Watch(ctx, prefix, clientv3.WithPrefix(), clientv3.WithRev(int64(after)+1)) {
		if err := r.Err(); err != nil {
			if ctx.Err() == nil {
				e.log.Info("watch: interrupted, listing anew", "under", prefix, "error", err)
			}
			return
		}
		for _, ev := range r.Events {
			kv := rowOf(ev.Kv)
			if ev.Type == mvccpb.Event_DELETE {
				kv.value = nil
			} else if kv.value == nil {
				kv.value = []byte{}
			}
			tell(kv)
		}
	}
}
