package cli

import (
	"fmt"
	"strings"

	"github.com/reservoir-cloud/reservoir/smi"
	"github.com/reservoir-cloud/reservoir/vee"
)

// serviceTree draws a service, its components and their replicas:
//
//	web  deploying  1/2 ready
//	└─ web  1/2
//	   ├─ web-1  RUNNING  ready  h1  10.80.128.2
//	   └─ web-2  PROLOG  h2  fetch appliance 12MiB of 40MiB (30%)
func serviceTree(s smi.Service) []line {
	head := fmt.Sprintf("%s  %s  %s ready", s.Name, s.Phase, readyOf(s))
	if s.Message != "" {
		head += "  " + oneLine(s.Message)
	}
	lines := []line{{key: s.Name, text: head}}
	for i, c := range s.Components {
		branch, below := "├─ ", "│  "
		if i == len(s.Components)-1 {
			branch, below = "└─ ", "   "
		}
		text := fmt.Sprintf("%s  %d/%d", c.Name, c.Ready, c.Desired)
		if c.Order != 0 {
			text += fmt.Sprintf("  start order %d", c.Order)
		}
		if c.Waiting != "" {
			text += "  waits for " + oneLine(c.Waiting)
		}
		key := s.Name + "/" + c.Name
		lines = append(lines, line{key: key, text: branch + text})
		width := 0
		for _, r := range c.Replicas {
			width = max(width, len(replicaName(c, r)))
		}
		for j, r := range c.Replicas {
			branch := below + "├─ "
			if j == len(c.Replicas)-1 {
				branch = below + "└─ "
			}
			lines = append(lines, line{key: key + "/" + replicaName(c, r), text: branch + replicaText(c, r, width), detail: progress(r.Progress)})
		}
	}
	return lines
}

func replicaName(c smi.Component, r smi.Replica) string {
	return fmt.Sprintf("%s-%d", c.Name, r.Number)
}

func replicaText(c smi.Component, r smi.Replica, width int) string {
	words := []string{fmt.Sprintf("%-*s", width, replicaName(c, r)), string(r.Phase)}
	if r.Phase == "" {
		words[1] = "PENDING"
	}
	if r.Ready {
		words = append(words, "ready")
	}
	for _, w := range []string{r.Host, bare(r.Address), oneLine(r.Error)} {
		if w != "" {
			words = append(words, w)
		}
	}
	return strings.Join(words, "  ")
}

// bare is an address without the length of its prefix.
func bare(cidr string) string { a, _, _ := strings.Cut(cidr, "/"); return a }

// progress in words: "fetch appliance 12MiB of 40MiB (30%)".
func progress(p *vee.Progress) string {
	if p == nil {
		return ""
	}
	amount := func(n int64) string {
		if p.Unit == "bytes" {
			return vee.Bytes(n).String()
		}
		return fmt.Sprint(n)
	}
	text := strings.TrimLeft(p.What+" "+amount(p.Done), " ")
	if p.Total > 0 {
		text += fmt.Sprintf(" of %s (%d%%)", amount(p.Total), min(100, 100*p.Done/p.Total))
	}
	return oneLine(text)
}
