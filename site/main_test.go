package site

import (
	"testing"

	"github.com/reservoir-cloud/reservoir/internal/ownnet"
)

// A site writes to the firewall of its machine.
func TestMain(m *testing.M) { ownnet.Main(m, true, (*testing.M).Run) }
