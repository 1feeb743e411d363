package debian

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// initrdModules are what the first process needs to reach the test and the
// host's root.
func initrdModules() []string {
	return []string{"virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"}
}

// Initrd returns the file of an initrd for the kernel, whose first process is
// the static program guest. It is made once for each program and kernel.
func (k *Kernel) Initrd(guest string) (string, error) {
	program, err := os.ReadFile(guest)
	if err != nil {
		return "", err
	}
	modules, err := k.Modules(initrdModules()...)
	if err != nil {
		return "", err
	}
	var image bytes.Buffer
	a := &archive{w: &image}
	for _, dir := range []string{"dev", "proc", "sys", "modules"} {
		a.directory(dir)
	}
	a.file("init", program)
	for i, file := range modules {
		data, err := os.ReadFile(filepath.Join(k.ModuleDir(), file))
		if err != nil {
			return "", err
		}
		a.file(fmt.Sprintf("modules/%02d-%s", i, filepath.Base(file)), data)
	}
	if err := a.close(); err != nil {
		return "", err
	}
	sum := sha256.Sum256(image.Bytes())
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(cache, fmt.Sprintf("initrd-%x", sum[:8]))
	if info, err := os.Stat(path); err == nil && info.Size() == int64(image.Len()) {
		return path, nil
	}
	return path, replace(path, image.Bytes())
}

// replace writes a file so that nobody sees half of it.
func replace(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
