package store

import (
	"context"
	"errors"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/reservoir-cloud/reservoir/internal/fault"
)

// Status is how the record fares.
type Status struct {
	Size     int64  `json:"size"`  // bytes on disk
	InUse    int64  `json:"inUse"` // of them bytes that hold something; the rest is freed by Compact
	Quota    int64  `json:"quota"` // bytes; 0: not known
	Full     bool   `json:"full"`  // only deletions are possible until Compact
	Revision uint64 `json:"revision"`
}

// Status of the record, or of its fullest member where it has several.
func (s *Store) Status(ctx context.Context) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	var st Status
	if s.client == nil {
		return st, nil // memory has no disk to look after
	}
	for _, member := range s.members {
		r, err := s.client.Status(ctx, member)
		if err != nil {
			return st, explain(ctx, err, "read the status of the site's record of truth")
		}
		if r.DbSize > st.Size {
			st.Size, st.InUse = r.DbSize, r.DbSizeInUse
		}
		st.Quota, st.Revision = r.DbSizeQuota, uint64(r.Header.Revision)
	}
	r, err := s.client.AlarmList(ctx)
	if err != nil {
		return st, explain(ctx, err, "read the alarms of the site's record of truth")
	}
	for _, a := range r.Alarms {
		st.Full = st.Full || a.Alarm == etcdserverpb.AlarmType_NOSPACE
	}
	return st, nil
}

// Compact forgets all past versions, gives the space back to the disk, and lets writing go
// on if the record was full. Calls wait while it runs: seconds per GB. fault.StoreFull when
// that made no room.
func (s *Store) Compact(ctx context.Context) (Status, error) {
	const doing = "compact the site's record of truth"
	st, err := s.Status(ctx)
	if err != nil || s.client == nil {
		return st, err
	}
	_, err = s.client.Compact(ctx, int64(st.Revision), clientv3.WithCompactPhysical())
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return st, explain(ctx, err, doing)
	}
	if err := s.defragment(ctx); err != nil {
		return st, explain(ctx, err, doing)
	}
	if st, err = s.Status(ctx); err != nil || !st.Full {
		return st, err
	}
	if st.Quota > 0 && st.Size >= st.Quota {
		return st, fault.New(fault.StoreFull, doing+": %d of %d bytes are in use by objects that exist now", st.InUse, st.Quota).
			Try("delete services that are no longer needed, or start the site with a larger quota")
	}
	if _, err := s.client.AlarmDisarm(ctx, &clientv3.AlarmMember{}); err != nil {
		return st, explain(ctx, err, "clear the alarm of the site's record of truth")
	}
	st.Full = false
	return st, nil
}

func (s *Store) defragment(ctx context.Context) error {
	if s.embedded != nil { // the client in process has no server around it that Defragment needs
		return s.embedded.etcd.Server.Backend().Defrag()
	}
	for _, member := range s.members {
		if _, err := s.client.Defragment(ctx, member); err != nil {
			return err
		}
	}
	return nil
}
