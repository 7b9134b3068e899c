package monitor

import "golang.org/x/sys/unix"

// SetSize sets the size of the terminal whose master fd is. Sizes below 1 are
// left alone.
func SetSize(fd int, s Size) error {
	if s.Width < 1 || s.Height < 1 {
		return nil
	}
	return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: s.Height, Col: s.Width})
}

// TypeEnd types what ends input on the terminal whose master fd is, which
// cannot be closed on one side only. Of lines, the first may only end one.
func TypeEnd(fd int) {
	mode, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return
	}
	end := []byte{mode.Cc[unix.VEOF]}
	if mode.Lflag&unix.ICANON != 0 {
		end = append(end, end[0])
	}
	_, _ = unix.Write(fd, end)
}
