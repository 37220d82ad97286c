package image

import (
	"errors"
	"io/fs"
	"net/http"
	"os"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// CachePath is the path that a Cache's Handler answers below.
const CachePath = "/v2/" + poolName + "/"

// Handler lends what is in the cache, by digest, as a site's registry would: to the caches of
// other hosts, which verify it. Who may ask is for the caller to say.
func (c *Cache) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+CachePath+"manifests/{digest}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		lend(w, r, c.manifests)
	})
	mux.HandleFunc("GET "+CachePath+"blobs/{digest}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/octet-stream")
		lend(w, r, c.blobs)
	})
	return mux
}

func lend(w http.ResponseWriter, r *http.Request, from blobs) {
	d, err := digest.Parse(r.PathValue("digest"))
	if err != nil || d.Algorithm() != digest.SHA256 {
		http.Error(w, "no digest", http.StatusBadRequest)
		return
	}
	f, err := os.Open(from.path(d))
	if err != nil {
		status := http.StatusInternalServerError
		if errors.Is(err, fs.ErrNotExist) {
			status = http.StatusNotFound
		}
		http.Error(w, "blob "+d.String()+" is not here", status)
		return
	}
	defer f.Close()
	http.ServeContent(w, r, "", time.Time{}, f) // with ranges, so that a cut transfer goes on
}
