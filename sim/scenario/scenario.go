// Package scenario runs simulations that are written down in files: a script of what befalls
// a site, with what is expected of it, or an experiment that compares schedulers under load.
// docs/simulation.md documents the files; test/scenarios has many.
package scenario

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"go.yaml.in/yaml/v4"

	"github.com/reservoir-cloud/reservoir/sim/scale"
	"github.com/reservoir-cloud/reservoir/sim/site"
)

// File of a scenario. It has either a Site and a Script, or an Experiment.
type File struct {
	About      string      `yaml:"about"`
	Site       site.Config `yaml:"site"`
	Script     []string    `yaml:"script"`
	Experiment *Experiment `yaml:"experiment"`
}

// Experiment compares algorithms on one trace of loads.
type Experiment struct {
	Setting    string            `yaml:"setting"`    // published or dense: see package scale
	Algorithms []scale.Algorithm `yaml:"algorithms"` // none: ring, locality and central
	Hosts      int               `yaml:"hosts"`
	Sites      int               `yaml:"sites"`    // 0: 1
	VEEs       int               `yaml:"vees"`     // 0: as many as the setting has for the hosts
	Duration   time.Duration     `yaml:"duration"` // 0: half an hour
	Mean       float64           `yaml:"mean"`     // of loads, per cent; 0: the setting's
	Std        float64           `yaml:"std"`      // 0: the setting's
	Seed       uint64            `yaml:"seed"`     // 0: 1
}

// Parse a file. Errors name the line or the field.
func Parse(text []byte) (File, error) {
	var f File
	d := yaml.NewDecoder(strings.NewReader(string(text)))
	d.KnownFields(true)
	if err := d.Decode(&f); err != nil {
		return f, fmt.Errorf("scenario: %w", err)
	}
	switch {
	case len(f.Script) == 0 && f.Experiment == nil:
		return f, errors.New("scenario: neither a script nor an experiment: one of them is needed")
	case len(f.Script) > 0 && f.Experiment != nil:
		return f, errors.New("scenario: a script and an experiment: make two files of it")
	}
	if f.Experiment != nil {
		_, err := f.Experiment.configs()
		return f, err
	}
	for i, line := range f.Script {
		if err := site.CheckCommand(line); err != nil {
			return f, fmt.Errorf("scenario: line %d of the script: %w", i+1, err)
		}
	}
	return f, nil
}

// Seed to run with instead of the file's.
func (f *File) Seed(seed uint64) {
	f.Site.Seed = seed
	if f.Experiment != nil {
		f.Experiment.Seed = seed
	}
}

// configs of the experiment, one for each algorithm.
func (e Experiment) configs() (all []scale.Config, err error) {
	algorithms := e.Algorithms
	if len(algorithms) == 0 {
		algorithms = []scale.Algorithm{scale.Ring, scale.Locality, scale.Central}
	}
	for _, a := range algorithms {
		var c scale.Config
		switch e.Setting {
		case "published", "":
			c = scale.Published(a, e.Hosts)
		case "dense":
			c = scale.Dense(a, e.Hosts)
		default:
			return nil, fmt.Errorf("scenario: setting %q: want published or dense", e.Setting)
		}
		c.Sites = max(1, e.Sites)
		if e.VEEs != 0 {
			c.VEEs = e.VEEs
		}
		if e.Duration != 0 {
			c.Duration = e.Duration
		}
		if e.Mean != 0 {
			c.Mean = e.Mean
		}
		if e.Std != 0 {
			c.Std = e.Std
		}
		if e.Seed != 0 {
			c.Seed = e.Seed
		}
		if err := c.Check(); err != nil {
			return nil, fmt.Errorf("scenario: %w", err)
		}
		all = append(all, c)
	}
	return all, nil
}

// Report of a run.
type Report struct {
	About string   `json:"about,omitempty"`
	Wrong []string `json:"wrong"` // what must not be, and was; none: all is well
	Rows  []Row    `json:"rows,omitempty"`

	history site.History
	results []scale.Result
}

// Row of an experiment's table.
type Row struct {
	Algorithm  scale.Algorithm `json:"algorithm"`
	Hosts      int             `json:"hosts"`
	VEEs       int             `json:"vees"`
	Violations int             `json:"violations"`
	MeanS      float64         `json:"meanSeconds"` // of a violation
	MaxS       float64         `json:"maxSeconds"`
	Share      float64         `json:"share"` // of all host time
	Partition  float64         `json:"hostsPerPartition"`
	Migrations int             `json:"migrations"`
	InterSite  float64         `json:"interSite"` // share of the migrations
	Messages   int             `json:"messages"`
}

// Run a scenario. What happens at a site is written to log, line by line. An expectation
// that is not met is wrong; an error is something that could not be run.
func (f File) Run(log io.Writer) (Report, error) {
	r := Report{About: strings.TrimSpace(f.About), Wrong: []string{}}
	if f.Experiment != nil {
		return r, f.Experiment.run(&r)
	}
	s, err := site.New(f.Site, log)
	if err != nil {
		return r, fmt.Errorf("scenario: %w", err)
	}
	for _, line := range f.Script {
		if err := s.Do(line); err != nil {
			r.Wrong = append(r.Wrong, err.Error())
			break
		}
	}
	r.Wrong = append(r.Wrong, s.Wrong()...)
	r.history = s.History()
	return r, nil
}

func (e Experiment) run(r *Report) error {
	configs, err := e.configs()
	if err != nil {
		return err
	}
	for _, c := range configs {
		x, err := scale.Run(c)
		if err != nil {
			return fmt.Errorf("experiment with %s: %w", c.Algorithm, err)
		}
		r.results = append(r.results, x)
		r.Rows = append(r.Rows, Row{Algorithm: c.Algorithm, Hosts: c.Hosts, VEEs: c.VEEs, Violations: x.Violations.N, MeanS: x.Violations.Mean(), MaxS: x.Violations.Max,
			Share: x.Share, Partition: x.Partitions.Mean(), Migrations: x.Migrations, InterSite: x.InterSite(), Messages: x.Messages})
	}
	return nil
}
