-- The limiter's transitions in Redis, the same as the functions of migration 0004, where the reasons stand: change
-- both. A principal's whole state is one value, its account's slots are two sorted sets, and a set names the account's
-- principals; all keys of an account carry the same hash tag. Time is the server's. A holder that does not renew its grant loses its slot.

-- name: common
local state_key, busy_key, slots_key, wake_key, principals_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local principal, ticket = ARGV[1], ARGV[2]
local function number(i) return tonumber(ARGV[i]) end
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1e6
local DAY = 86400000

local function load()
    local packed = redis.call('GET', state_key)
    if packed then return cmsgpack.unpack(packed) end
    local s = {paced = false, pace = 0, slow = 3, strikes = 0, struck = 0, shrunk = 0, shrunk_at = 0, neighbour = 0,
               before = 0, since = 0, paused = 0, seq = 0, grants = {}, tickets = {}}
    -- A server that has just started may have forgotten what was sent a moment ago.
    local up = tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)') or '0')
    if up < 4 then s.paused = now + 4 - up end
    return s
end

local function save(s)
    redis.call('SET', state_key, cmsgpack.pack(s), 'PX', DAY)
    redis.call('SADD', principals_key, principal)
    redis.call('PEXPIRE', principals_key, DAY)
end

local function member(id) return principal .. '|' .. id end

local function place(id) return wake_key .. id end

local function wake()
    local waiting = redis.call('ZRANGE', slots_key, 0, -1)
    local first = waiting[1]
    for _, one in ipairs(waiting) do
        if string.sub(one, 1, #principal + 1) == principal .. '|' then first = one break end
    end
    if first then
        redis.call('ZREM', slots_key, first)
        local list = place(string.match(first, '|(%d+)$'))
        redis.call('LPUSH', list, 1)
        redis.call('PEXPIRE', list, 5000)
    end
end

local function neighbour(s, window)
    if now - s.since > 4 * window then return 0 end
    if now - s.since > 2 * window then return s.neighbour end
    return math.max(s.neighbour, s.before)
end

local function shrunk(s)
    return math.max(0, s.shrunk - math.floor((now - s.shrunk_at) / 10))
end

local function find(rows, id)
    for i, row in ipairs(rows) do if row.id == id then return row, i end end
end

local function pause(s, wait, steps, forgotten)
    if s.paused <= now then
        s.strikes = (s.struck > now - forgotten) and math.min(s.strikes + 1, #steps) or 1
        wait = math.max(wait, steps[s.strikes])
    end
    s.paused = math.max(s.paused, now + wait)
    s.struck = s.paused
    s.paced = true
    s.pace = math.max(s.pace, s.paused)
    return s.paused - now
end

-- name: ask
local units, urgent, lag, longest = number(3), ARGV[4] == '1', number(5), number(6)
local budget, window, parallel, account_parallel = number(7), number(8), number(9), number(10)
local poll, patience, catch_up, lease = number(11), number(12), number(13), number(14)
local s = load()
local cost = (s.weight_for == units) and s.weight or units
budget = math.max(cost, budget - neighbour(s, window))
local slots = math.max(1, parallel - shrunk(s))
local rank = urgent and 0 or 1

local grants, used, sure, busy, oldest = {}, 0, 0, 0, now
for _, g in ipairs(s.grants) do
    local under_way = g.alive > now
    if g.id == ticket then              -- granted, but too late to be used
        redis.call('ZREM', busy_key, member(ticket))
    elseif g.leaves > now or under_way then
        grants[#grants + 1] = g
        if g.leaves > now then used = used + g.units end
        if g.counted and g.start > now - window + 0.1 then sure = sure + 1 end
        if under_way then busy = busy + 1; oldest = math.min(oldest, g.start) end
    end
end
s.grants = grants
local tickets, mine = {}, nil
for _, t in ipairs(s.tickets) do
    if t.id == ticket then
        mine = t
        tickets[#tickets + 1] = t
    elseif t.expires > now then
        tickets[#tickets + 1] = t
    else
        redis.call('ZREM', slots_key, member(t.id))
    end
end
s.tickets = tickets
local ahead, before = 0, 0
for _, t in ipairs(tickets) do
    if t ~= mine and (t.rank < rank or (t.rank == rank and (not mine or t.seq < mine.seq))) then
        ahead = ahead + 1
        before = before + t.units
    end
end

local turn = math.max(now, s.paused)
local missing = used + before + cost - budget
if missing > 0 then
    local windows = math.max(0, math.ceil((missing - used) / budget))
    table.sort(grants, function(a, b) return a.leaves < b.leaves end)
    local gone, room = 0, now
    for _, g in ipairs(grants) do
        if g.leaves > now then
            gone = gone + g.units
            if gone >= missing - windows * budget then room = g.leaves break end
        end
    end
    room = room + windows * window
    turn = math.max(turn, room)
    if not s.paced then
        s.paced = true
        s.pace = room - window * (before + cost) / budget
    end
elseif used == 0 and ahead == 0 and s.paused < now - window then
    s.paced = false
end
if s.paced then turn = math.max(turn, s.pace + window * (before + cost) / budget) end

local wait, reason = turn - now, nil
if wait > 0 then
    reason = s.paused > now and 'paused' or 'window'
else
    local kept = (not urgent and slots > 1 and (s.slow > window / 2 or oldest < now - window / 2)) and 1 or 0
    redis.call('ZREMRANGEBYSCORE', busy_key, '-inf', now)
    if busy + ahead + 1 > slots - kept or redis.call('ZCARD', busy_key) >= account_parallel then
        reason = 'parallel'
    end
end

if mine and not reason then
    local _, i = find(tickets, ticket)
    table.remove(tickets, i)
end
redis.call('ZREM', slots_key, member(ticket))
if not reason then
    grants[#grants + 1] = {id = ticket, units = cost, start = now, leaves = now + window + lag, alive = now + lease,
                           seen = used + cost, sure = sure + 1, counted = false}
    redis.call('ZADD', busy_key, now + lease, member(ticket))
    redis.call('PEXPIRE', busy_key, DAY)
    s.pace = math.max(s.pace + window * cost / budget, now - catch_up)
    if busy + 1 < slots then wake() end
    save(s)
    return {1, '0', ''}
end
if reason == 'parallel' then
    wait = poll
elseif wait > longest then
    if mine then
        local _, i = find(tickets, ticket)
        table.remove(tickets, i)
    end
    wake()
    save(s)
    return {0, tostring(wait), reason}
end
if not mine then
    s.seq = s.seq + 1
    mine = {id = ticket, rank = rank, seq = s.seq}
    tickets[#tickets + 1] = mine
end
mine.units = cost
mine.expires = now + wait + patience
if reason == 'parallel' then
    redis.call('ZADD', slots_key, rank * 1e12 + mine.seq, member(ticket))
    redis.call('PEXPIRE', slots_key, DAY)
end
save(s)
return {0, string.format('%.6f', wait), reason}

-- name: cancel
local s = load()
local _, i = find(s.tickets, ticket)
if i then table.remove(s.tickets, i) end
local _, j = find(s.grants, ticket)
if j then table.remove(s.grants, j) end
redis.call('ZREM', slots_key, member(ticket))
redis.call('ZREM', busy_key, member(ticket))
redis.call('DEL', place(ticket))
if i or j then
    wake()
    save(s)
end
return 0

-- name: free
local limit, remaining, budget, window, lag = tonumber(ARGV[3]), tonumber(ARGV[4]), number(5), number(6), number(7)
local s = load()
local g = find(s.grants, ticket)
redis.call('ZREM', busy_key, member(ticket))
redis.call('DEL', place(ticket))
if not g or g.over then return {s.weight or 0, neighbour(s, window)} end
g.over, g.alive, g.leaves = true, 0, math.min(g.leaves, now + window)
g.counted = limit ~= nil and remaining ~= nil
s.slow = math.max(now - g.start, s.slow * 0.9)
if g.counted and limit >= 1 and limit <= 1000 and remaining >= 0 and remaining <= limit then
    local each, told = nil, nil
    local guess = math.floor(budget / limit)
    if limit < budget and math.floor(budget / guess) == limit then
        each = guess
        told = (limit - remaining) * each
    else
        told = limit - remaining + math.max(0, budget - limit)
        local most = math.floor((limit - remaining) / g.sure)
        if limit >= budget and most < g.units then each = math.max(1, most) end
    end
    if each and each ~= g.units then
        s.weight_for = (s.weight_for and g.units == s.weight) and s.weight_for or g.units
        s.weight = each
    end
    if (each or g.units) == g.units and now - g.start < window / 2 then
        local own = g.seen
        for _, other in ipairs(s.grants) do
            if other ~= g and other.start > g.start and other.start <= g.start + lag then own = own + other.units end
        end
        if now - s.since > 2 * window then
            s.before = (now - s.since > 4 * window) and 0 or s.neighbour
            s.neighbour = 0
            s.since = now
        end
        s.neighbour = math.max(s.neighbour, math.min(told - own, budget))
    end
end
wake()
save(s)
return {s.weight or 0, neighbour(s, window)}

-- name: renew
local lease, s = number(3), load()
for id in string.gmatch(ticket, '%d+') do
    local g = find(s.grants, id)
    if g and not g.over then
        g.alive = now + lease
        redis.call('ZADD', busy_key, now + lease, member(id))
    end
end
save(s)
return 0

-- name: pause
local steps = {}
for i = 5, #ARGV do steps[#steps + 1] = number(i) end
local s = load()
local wait = pause(s, number(3), steps, number(4))
save(s)
return string.format('%.6f', wait)

-- name: shrink
local parallel, breath, forgotten, steps = number(3), number(4), number(5), {}
for i = 6, #ARGV do steps[#steps + 1] = number(i) end
local s = load()
local less, wait = shrunk(s), 0
if s.shrunk_at > now - 1 and s.paused > now then
    wait = s.paused - now
elseif less >= parallel - 1 then
    s.shrunk, s.shrunk_at = less, now
    wait = pause(s, 0, steps, forgotten)
else
    s.shrunk, s.shrunk_at = less + 1, now
    s.paused = math.max(s.paused, now + breath * 2 ^ less)
    wait = s.paused - now
end
save(s)
return string.format('%.6f', wait)

-- name: standing
-- How things stand in all these accounts, of which KEYS are what their keys begin with: principals that must not send
-- now, requests that wait, requests under way.
local paused, waiting, under_way = 0, 0, 0
for _, tag in ipairs(KEYS) do
    for _, name in ipairs(redis.call('SMEMBERS', tag .. ':principals')) do
        local packed = redis.call('GET', tag .. ':' .. name)
        local s = packed and cmsgpack.unpack(packed) or {paused = 0, tickets = {}, grants = {}}
        if s.paused > now then paused = paused + 1 end
        for _, t in ipairs(s.tickets) do if t.expires > now then waiting = waiting + 1 end end
        for _, g in ipairs(s.grants) do if g.alive > now then under_way = under_way + 1 end end
    end
end
return {paused, waiting, under_way}
