package main

import (
	"encoding/json"
	"io"
	"os"
	"strings"
)

// lastWords of a log that are told beside a failure, bytes.
const lastWords = 2 << 10

// firstBoot is what went wrong, in one line, by cloud-init's result.json: its errors and the
// last lines of its log. Empty when nothing did, or the file is none of cloud-init's.
func firstBoot(result []byte, log string) string {
	var r struct {
		V1 struct {
			Errors []string `json:"errors"`
		} `json:"v1"`
	}
	if json.Unmarshal(result, &r) != nil || len(r.V1.Errors) == 0 {
		return ""
	}
	text := "cloud-init: " + strings.Join(r.V1.Errors, "; ")
	var lines []string
	for line := range strings.Lines(log) {
		if line = strings.TrimSpace(line); line != "" {
			lines = append(lines, line)
		}
	}
	if len(lines) > 0 {
		text += "; its log ends: " + strings.Join(lines, " | ")
	}
	return text
}

// tail of a file, from the beginning of a line; empty where it cannot be read.
func tail(name string) string {
	f, err := os.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return ""
	}
	from := max(0, info.Size()-lastWords)
	text, _ := io.ReadAll(io.NewSectionReader(f, from, lastWords)) // as much as there is
	if from == 0 {
		return string(text)
	}
	_, whole, _ := strings.Cut(string(text), "\n")
	return whole
}
