package mount

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// attachLoop makes a read-only loop device of a file. It goes when nothing has
// it open or mounted any more.
//
// kernel: loop(4). LOOP_CONFIGURE is in Linux 5.8.
func attachLoop(path string) (*os.File, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	defer control.Close()
	const tries = 100 // others take devices, too
	for range tries {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free one: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDONLY, 0)
		if err != nil {
			return nil, err
		}
		err = configure(int(device.Fd()), int(file.Fd()))
		if err == nil {
			return device, nil
		}
		_ = device.Close()
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("configure %s: %w", device.Name(), err)
		}
	}
	return nil, fmt.Errorf("all of %d were taken at once by others: %w", tries, unix.EBUSY)
}

// configure ties a device to a file.
func configure(device, file int) error {
	info := unix.LoopInfo64{Flags: unix.LO_FLAGS_READ_ONLY | unix.LO_FLAGS_AUTOCLEAR}
	err := unix.IoctlLoopConfigure(device, &unix.LoopConfig{Fd: uint32(file), Info: info})
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTTY) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if err := unix.IoctlSetInt(device, unix.LOOP_SET_FD, file); err != nil {
		return err
	}
	if err := unix.IoctlLoopSetStatus64(device, &info); err != nil {
		return errors.Join(err, unix.IoctlSetInt(device, unix.LOOP_CLR_FD, 0))
	}
	return nil
}
