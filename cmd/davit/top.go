package main

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/davit-runtime/davit/cmd/davit/console"
	"github.com/davit-runtime/davit/internal/play"
	"github.com/davit-runtime/davit/internal/terminal"
)

type topOptions struct {
	once     bool
	podsOnly bool
	interval time.Duration
	sort     string
}

// topOrders is by what figures pods, and containers of a pod, come first.
var topOrders = map[string]func(a, b *figures) int{
	"cpu":    func(a, b *figures) int { return cmp.Compare(b.cpu.value, a.cpu.value) },
	"memory": func(a, b *figures) int { return cmp.Compare(b.memory.value, a.memory.value) },
	"disk":   func(a, b *figures) int { return cmp.Compare(b.disk.value, a.disk.value) },
	"name":   func(*figures, *figures) int { return 0 },
}

func (a app) topCommand() *cobra.Command {
	var o topOptions
	cmd := &cobra.Command{
		Use:   "top [POD]",
		Short: "Show what pods and containers use, again and again",
		Long: `Show what pods, and below each its containers, use: CPU in thousandths of one, over the last interval; memory that cannot be given
back (working set) and how much that is of its limit; disk of writable layers; processes; bytes to and from the network in a second; and
for how much of the last ten seconds something waited for CPU, memory and disk (pressure, where the kernel tells).

On a terminal it goes on until it is interrupted. Otherwise, or with --once, it measures for a second, prints once, and ends.
With -o json: the CRI's ListPodSandboxStatsResponse, or where that cannot be had its ListContainerStatsResponse.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if topOrders[o.sort] == nil {
				return fmt.Errorf("--sort %s: want cpu, memory, disk or name", o.sort)
			}
			if o.interval < 100*time.Millisecond {
				return fmt.Errorf("--interval %v: want 100ms or more", o.interval)
			}
			return a.top(cmd.Context(), strings.Join(args, ""), o)
		},
	}
	cmd.Flags().BoolVar(&o.once, "once", false, "print once, also on a terminal")
	cmd.Flags().BoolVar(&o.podsOnly, "pods", false, "pods only")
	cmd.Flags().DurationVar(&o.interval, "interval", 2*time.Second, "how long to wait between figures")
	cmd.Flags().StringVar(&o.sort, "sort", "cpu", "what comes first: most cpu, memory or disk; or by name")
	register(cmd, "sort", cobra.FixedCompletions([]cobra.Completion{"cpu", "memory", "disk", "name"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a app) top(ctx context.Context, ref string, o topOptions) error {
	var pod string
	if ref != "" {
		p, err := a.findPod(ctx, ref)
		if err != nil {
			return err
		}
		pod = p.Id
	}
	if a.JSON() {
		return a.printStats(ctx, pod)
	}
	screen := terminal.Of(a.Out)
	live := screen != nil && !o.once
	if live {
		fmt.Fprint(a.Out, "\x1b[?1049h\x1b[?25l") // a screen of its own, without a cursor
		defer fmt.Fprint(a.Out, "\x1b[?25h\x1b[?1049l")
	}
	before, err := a.measure(ctx, pod)
	for wait := min(time.Second, o.interval); err == nil; wait = o.interval {
		select {
		case <-ctx.Done():
			return nil // which is how it ends
		case <-time.After(wait):
		}
		var now *usage
		if now, err = a.measure(ctx, pod); err != nil {
			break
		}
		rows := now.rows(before, o)
		if !live {
			return a.PrintTable(topHeader, rows)
		}
		err = a.draw(screen, rows)
		before = now
	}
	if live && console.Interrupted(err) && ctx.Err() != nil {
		return nil
	}
	return err
}

// draw shows as much as the screen has room for.
func (a app) draw(screen *os.File, rows [][]string) error {
	width, height, err := term.GetSize(int(screen.Fd()))
	if err != nil || width == 0 || height == 0 {
		width, height = 80, 24
	}
	var table bytes.Buffer
	paper := *a.Console
	paper.Out = &table
	if err := paper.PrintTable(topHeader, rows); err != nil {
		return err
	}
	var out bytes.Buffer
	out.WriteString("\x1b[H")
	for i, line := range strings.Split(strings.TrimRight(table.String(), "\n"), "\n") {
		if i == height-1 {
			break
		}
		fmt.Fprintf(&out, "%.*s\x1b[K\n", width, line)
	}
	out.WriteString("\x1b[J")
	_, err = out.WriteTo(a.Out)
	return err
}

func (a app) printStats(ctx context.Context, pod string) error {
	ctx, cancel := a.Call(ctx, 0)
	defer cancel()
	pods, err := a.Client.PodsStats(ctx, podFilter(pod))
	if err == nil {
		return a.PrintMessage(&runtimeapi.ListPodSandboxStatsResponse{Stats: pods})
	}
	containers, containersErr := a.Client.ContainersStats(ctx, containerFilter(pod))
	if containersErr != nil {
		return fmt.Errorf("statistics of pods: %w", err)
	}
	return a.PrintMessage(&runtimeapi.ListContainerStatsResponse{Stats: containers})
}

func podFilter(id string) *runtimeapi.PodSandboxStatsFilter {
	if id == "" {
		return nil
	}
	return &runtimeapi.PodSandboxStatsFilter{Id: id}
}

func containerFilter(pod string) *runtimeapi.ContainerStatsFilter {
	if pod == "" {
		return nil
	}
	return &runtimeapi.ContainerStatsFilter{PodSandboxId: pod}
}

// A usage is what all pods used at one time.
type usage struct {
	at   time.Time
	pods []*podUsage
}

type podUsage struct {
	figures
	containers []*figures
}

// measure asks for figures of all pods, or of one. Where there are only
// those of containers, pods are what their containers are together.
func (a app) measure(ctx context.Context, pod string) (*usage, error) {
	ctx, cancel := a.Call(ctx, 0)
	defer cancel()
	u := &usage{at: time.Now()}
	pods, err := a.Client.PodsStats(ctx, podFilter(pod))
	if err != nil {
		// Those of containers may be had all the same: containerd has none of
		// any pod if one has no control group of its own.
		if a.measureContainers(ctx, pod, u) == nil {
			return u, nil
		}
		return nil, fmt.Errorf("statistics of pods: %w", err)
	}
	for _, s := range pods {
		p := &podUsage{figures: podFigures(s)}
		for _, c := range s.GetLinux().GetContainers() {
			p.containers = append(p.containers, containerFigures(c))
		}
		p.add()
		u.pods = append(u.pods, p)
	}
	return u, nil
}

func (a app) measureContainers(ctx context.Context, pod string, u *usage) error {
	stats, err := a.Client.ContainersStats(ctx, containerFilter(pod))
	if err != nil {
		return fmt.Errorf("statistics of containers: %w", err)
	}
	pods, err := a.Client.Pods(ctx, nil)
	if err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	containers, err := a.Client.Containers(ctx, nil)
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	of := map[string]*podUsage{} // by containers' IDs
	for _, p := range pods {
		all := &podUsage{figures: figures{id: p.Id, name: podName(p.Metadata)}}
		for _, c := range containers {
			if c.PodSandboxId == p.Id {
				of[c.Id] = all
			}
		}
		u.pods = append(u.pods, all)
	}
	for _, s := range stats {
		if p := of[s.GetAttributes().GetId()]; p != nil {
			p.containers = append(p.containers, containerFigures(s))
		}
	}
	u.pods = slices.DeleteFunc(u.pods, func(p *podUsage) bool { return len(p.containers) == 0 })
	for _, p := range u.pods {
		p.add()
	}
	return nil
}

const topHeader = "POD/CONTAINER CPU MEMORY OF-LIMIT DISK PROCESSES RX/S TX/S PRESSURE"

// rows has a row for each pod and, indented, its containers.
func (u *usage) rows(before *usage, o topOptions) [][]string {
	earlier := map[string]*figures{}
	for _, p := range before.pods {
		earlier[p.id] = &p.figures
		for _, c := range p.containers {
			earlier[c.id] = c
		}
	}
	for _, p := range u.pods {
		p.since(earlier[p.id], u.at.Sub(before.at))
		for _, c := range p.containers {
			c.since(earlier[c.id], u.at.Sub(before.at))
		}
	}
	order := topOrders[o.sort]
	slices.SortFunc(u.pods, func(a, b *podUsage) int {
		return cmp.Or(order(&a.figures, &b.figures), strings.Compare(a.name, b.name), strings.Compare(a.id, b.id))
	})
	var rows [][]string
	for _, p := range u.pods {
		rows = append(rows, p.row(""))
		slices.SortFunc(p.containers, func(a, b *figures) int { return cmp.Or(order(a, b), strings.Compare(a.name, b.name)) })
		for _, c := range p.containers {
			if !o.podsOnly {
				rows = append(rows, c.row("  "))
			}
		}
	}
	return rows
}

// figures are those of one pod or container.
type figures struct {
	id, name string

	cpuAt                   int64  // nanoseconds since 1970
	cpuUsed, received, sent figure // nanoseconds of CPU, and bytes, since the beginning
	cpu, rx, tx             figure // in a second: nanoseconds, bytes
	memory, limit, disk     figure // bytes
	processes               figure
	pressure                string
}

// A figure may be unknown.
type figure struct {
	value float64
	known bool
}

func known(v *runtimeapi.UInt64Value) figure { return figure{float64(v.GetValue()), v != nil} }

func (f figure) plus(more figure) figure { return figure{f.value + more.value, f.known || more.known} }

// per is the growth in a second; what began anew has none.
func (f figure) per(before figure, span time.Duration) figure {
	if !f.known || !before.known || span <= 0 || f.value < before.value {
		return figure{}
	}
	return figure{(f.value - before.value) / span.Seconds(), true}
}

func (f figure) bytes() string {
	if !f.known {
		return "-"
	}
	return play.FormatBytes(uint64(f.value))
}

func podFigures(s *runtimeapi.PodSandboxStats) figures {
	l := s.GetLinux()
	f := figures{id: s.GetAttributes().GetId(), name: podName(s.GetAttributes().GetMetadata()), processes: known(l.GetProcess().GetProcessCount())}
	f.fill(l.GetCpu(), l.GetMemory(), l.GetIo())
	for _, i := range append([]*runtimeapi.NetworkInterfaceUsage{l.GetNetwork().GetDefaultInterface()}, l.GetNetwork().GetInterfaces()...) {
		f.received, f.sent = f.received.plus(known(i.GetRxBytes())), f.sent.plus(known(i.GetTxBytes()))
	}
	return f
}

func containerFigures(s *runtimeapi.ContainerStats) *figures {
	f := &figures{id: s.GetAttributes().GetId(), name: s.GetAttributes().GetMetadata().GetName(), disk: known(s.GetWritableLayer().GetUsedBytes())}
	f.fill(s.GetCpu(), s.GetMemory(), s.GetIo())
	return f
}

func (f *figures) fill(cpu *runtimeapi.CpuUsage, memory *runtimeapi.MemoryUsage, io *runtimeapi.IoUsage) {
	f.cpuAt, f.cpuUsed, f.cpu = cpu.GetTimestamp(), known(cpu.GetUsageCoreNanoSeconds()), known(cpu.GetUsageNanoCores())
	f.memory = known(memory.GetWorkingSetBytes())
	if left := memory.GetAvailableBytes(); left.GetValue() > 0 { // that is, what a limit leaves
		f.limit = known(left).plus(f.memory)
	}
	if cpu.GetPsi() != nil || memory.GetPsi() != nil || io.GetPsi() != nil {
		f.pressure = fmt.Sprintf("%.0f/%.0f/%.0f%%", cpu.GetPsi().GetSome().GetAvg10(), memory.GetPsi().GetSome().GetAvg10(), io.GetPsi().GetSome().GetAvg10())
	}
}

// add gives a pod what only its containers tell.
func (p *podUsage) add() {
	var used, memory figure
	for _, c := range p.containers {
		p.disk, used, memory = p.disk.plus(c.disk), used.plus(c.cpuUsed), memory.plus(c.memory)
		p.cpuAt = max(p.cpuAt, c.cpuAt)
	}
	if !p.cpuUsed.known {
		p.cpuUsed = used
	}
	if !p.memory.known {
		p.memory = memory
	}
}

// since computes what was used in a second since an earlier measurement. The
// runtime's own figure of the CPU's use stays where there is none.
func (f *figures) since(before *figures, span time.Duration) {
	if before == nil {
		return
	}
	if used := f.cpuUsed.per(before.cpuUsed, time.Duration(f.cpuAt-before.cpuAt)); used.known {
		f.cpu = used
	}
	f.rx, f.tx = f.received.per(before.received, span), f.sent.per(before.sent, span)
}

func (f *figures) row(indent string) []string {
	cpu, ofLimit, processes := "-", "-", "-"
	if f.cpu.known {
		cpu = fmt.Sprintf("%.0fm", f.cpu.value/1e6)
	}
	if f.limit.value > 0 {
		ofLimit = fmt.Sprintf("%.0f%%", 100*f.memory.value/f.limit.value)
	}
	if f.processes.known {
		processes = fmt.Sprintf("%.0f", f.processes.value)
	}
	return []string{indent + f.name, cpu, f.memory.bytes(), ofLimit, f.disk.bytes(), processes, f.rx.bytes(), f.tx.bytes(), console.Dash(f.pressure)}
}
