// Command davitd is davit's daemon: it serves the Container Runtime Interface
// on a Unix socket. It reads its configuration, builds the parts, joins them,
// serves and stops; containers run on without it.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"runtime/pprof"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

// version is set by the linker. The CRI wants it semantic.
var version = "0.1.0-dev"

const configFile = "/etc/davit/config.toml"

func main() {
	// At once: it would end davitd.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, unix.SIGHUP)
	c, err := arguments(os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "davitd:", err)
		os.Exit(2)
	}
	if c == nil {
		return
	}
	if err := mayRun(os.Geteuid()); err != nil {
		fmt.Fprintln(os.Stderr, "davitd:", err)
		os.Exit(1)
	}
	level := new(slog.LevelVar)
	log := newLog(os.Stderr, c.Log, level)
	slog.SetDefault(log) // for libraries that log
	klog.SetSlogLogger(slog.New(hushed{log.Handler()}))
	// Half of the default: davitd is to stay small beside what it runs.
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	go answer()
	log.Info("davitd starts", "version", version, "pid", os.Getpid(), "root", c.Root, "state", c.State)
	again := func() (*config, error) { return arguments(os.Args[1:], io.Discard) }
	if err := run(ctx, newReloader(c, hangups, again, level, log)); err != nil {
		log.Error("davitd ends", "error", err)
		os.Exit(1)
	}
	log.Info("davitd ends; containers run on")
}

// mayRun refuses whom the first thing to do would refuse, in other words.
func mayRun(uid int) error {
	if uid != 0 {
		return fmt.Errorf("it makes containers, so it needs root, and runs as user %d", uid)
	}
	return nil
}

// answer tells what all of davitd does whenever it gets SIGUSR1.
func answer() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR1)
	for range signals {
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 2)
	}
}

// arguments reads flags and the configuration file; flags win. It returns nil
// if there is nothing more to do.
func arguments(args []string, out io.Writer) (*config, error) {
	f := flag.NewFlagSet("davitd", flag.ContinueOnError)
	f.SetOutput(io.Discard) // main tells errors
	var flags config
	path := f.String("config", configFile, "configuration `file`")
	f.StringVar(&flags.Root, "root", "", "`directory` of what outlives a boot (default /var/lib/davit)")
	f.StringVar(&flags.State, "state", "", "`directory` of what does not, on a tmpfs (default /run/davit)")
	f.StringVar(&flags.Socket, "socket", "", "`path` of the CRI socket (default davit.sock in the state directory)")
	f.Func("log-level", "debug, info, warn or error (default info)", func(level string) error { flags.Log.Level = logLevel(level); return nil })
	f.StringVar(&flags.Log.Format, "log-format", "", "text or json (default text)")
	show := f.Bool("version", false, "print the version and exit")
	try := f.Bool("check", false, "check the configuration, print what is in force as JSON, and exit")
	if err := f.Parse(args); errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(out, "davitd serves the Container Runtime Interface. Containers run on without it.\n\nUsage: davitd [options]\n\n")
		f.SetOutput(out)
		f.PrintDefaults()
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("%w; see davitd --help", err)
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unknown argument %q; see davitd --help", f.Arg(0))
	}
	if *show {
		fmt.Fprintln(out, "davitd", version)
		return nil, nil
	}
	given := false
	f.Visit(func(f *flag.Flag) { given = given || f.Name == "config" })
	c, err := readConfig(*path, given)
	if err != nil {
		return nil, err
	}
	for _, s := range []struct{ to, from *string }{
		{&c.Root, &flags.Root}, {&c.State, &flags.State}, {&c.Socket, &flags.Socket}, {&c.Log.Format, &flags.Log.Format},
	} {
		if *s.from != "" {
			*s.to = *s.from
		}
	}
	c.Log.Level = cmp.Or(flags.Log.Level, c.Log.Level)
	if err := c.check(); err != nil || !*try {
		return c, err
	}
	return nil, c.print(out)
}

// newLog returns a log whose level can be changed.
func newLog(to io.Writer, c logConfig, level *slog.LevelVar) *slog.Logger {
	level.Set(c.Level.value())
	options := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(to, options))
	}
	return slog.New(slog.NewTextHandler(to, options))
}
