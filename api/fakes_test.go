package api

import (
	"context"
	"sync"
)

// fakeConfig is a cluster file that changes when it is read again.
type fakeConfig struct {
	mu  sync.Mutex
	sum string
	err error
}

func (f *fakeConfig) ConfigStatus() ConfigStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return ConfigStatus{Path: "/etc/holdfast/cluster.yaml", Sum: f.sum}
}

func (f *fakeConfig) ReloadConfig(context.Context) (ReloadReport, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return ReloadReport{}, f.err
	}
	f.sum = "bbbb"
	return ReloadReport{Changed: true, Sum: f.sum, Applied: []string{"services"}, Restart: []string{"networks"}}, nil
}
