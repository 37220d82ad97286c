package cli

import (
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestSSHSpeaksThroughThisProgram(t *testing.T) {
	args := sshArgs("/opt/it's 100%/reservoir", "home site", "alpha.aaaaaaaaaa", "root", 2222, []string{"uptime"})
	if want := []string{"-l", "root", "alpha.aaaaaaaaaa", "uptime"}; !slices.Equal(args[len(args)-4:], want) {
		t.Errorf("ends with %v, want %v", args[len(args)-4:], want)
	}
	proxy := strings.ReplaceAll(strings.TrimPrefix(args[1], "ProxyCommand="), "%%", "%")
	out, err := exec.Command("sh", "-c", "printf '%s\n' "+proxy).Output() // as ssh has it run
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(out), "/opt/it's 100%/reservoir\n--context\nhome site\nvee\nport-forward\n--stdio\nalpha.aaaaaaaaaa\n2222\n"; got != want {
		t.Errorf("the proxy is called with\n%s, want\n%s", got, want)
	}
}
