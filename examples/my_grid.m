function mpc = my_grid
%MY_GRID  A seven-bus grid in MATPOWER's case format, to show what a file of your own needs.
%   A 220 kV ring (buses 10, 20, 30, 40) feeds a 110 kV town (50, 60) through two transformers and a
%   wind farm (70) over one line, so that its outage leaves the farm on its own.

mpc.version = '2';
mpc.baseMVA = 100;

%% bus data
%   bus  type  Pd    Qd    Gs  Bs  area  Vm    Va  baseKV  zone  Vmax  Vmin
mpc.bus = [
    10   3     0     0     0   0   1     1.02  0   220     1     1.1   0.9;
    20   2     40    12    0   0   1     1.01  0   220     1     1.1   0.9;
    30   1     85    25    0   0   1     1.00  0   220     1     1.1   0.9;
    40   1     60    15    0   0   1     1.00  0   220     1     1.1   0.9;
    50   1     70    20    0   0   1     1.00  0   110     1     1.1   0.9;
    60   2     55    18    0   12  1     1.00  0   110     1     1.1   0.9;
    70   1     0     0     0   0   1     1.00  0   220     1     1.1   0.9;
];

%% generator data: hydro at the reference bus, gas, a small town plant, wind
%   bus  Pg   Qg  Qmax  Qmin  Vg    mBase  status  Pmax  Pmin
mpc.gen = [
    10   120  0   150   -100  1.02  100    1       260   0;
    20   80   0   100   -60   1.01  100    1       150   20;
    60   30   0   40    -25   1.00  100    1       60    5;
    70   85   0   0     0     1.00  100    1       120   0;
];

%% branch data (ratings in MVA, 0 = none; ratio 0 = line)
%   fbus tbus r       x      b      rateA  rateB  rateC  ratio  angle  status
mpc.branch = [
    10   20   0.008   0.060  0.060  150    0      0      0      0      1;
    20   30   0.010   0.075  0.070  130    0      0      0      0      1;
    30   40   0.009   0.068  0.065  130    0      0      0      0      1;
    40   10   0.008   0.062  0.060  150    0      0      0      0      1;
    10   30   0.014   0.105  0.100  110    0      0      0      0      0;
    30   50   0.003   0.080  0      100    0      0      0.985  0      1;
    40   60   0.003   0.080  0      100    0      0      0.985  0      1;
    50   60   0.020   0.065  0.012  60     0      0      0      0      1;
    40   70   0.006   0.045  0.050  130    0      0      0      0      1;
];

%% generator costs: 2 startup shutdown n c2 c1 c0, in $/h of MW
mpc.gencost = [
    2    0    0    3    0.010   9    0;
    2    0    0    3    0.025   32   180;
    2    0    0    3    0.040   45   90;
    2    0    0    3    0       0    0;
];
