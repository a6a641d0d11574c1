-- The queue's transitions in Redis, each atomic inside one account: all keys of an account carry its hash tag, so that
-- a cluster keeps them on one master. The names and reasons are those of sql/queue.sql: change both.
--
-- KEYS are `queue:{account}`; ARGV[1] is the time (microseconds; empty: the server's), the rest is the script's own, and
-- all where a script does without the common part. A claim has a key more on a single server: what changes with the
-- paused queues.
-- Of an account there are: `tasks` (number -> record), `n` (the last number), `pending` and `busy` (thing to do ->
-- number), `lanes` and one `lane:RANK:QUEUE` each (what is due, by number), `later` (what is not, by time),
-- `wait:QUEUE` (all that is pending, by time), `completed` and `failed` (by time), `counts`, `runs`, `run:ID`
-- (what went wrong in it), `holders` (worker -> how many it has), `relayed` (see `enqueue`).

-- name: common
local ID, QUEUE, TYPE, ENTITY, OPERATION, PRIORITY, STATUS, PAYLOAD, ATTEMPTS, MAX, RESCUES, RUN, WORKER, RESULT, ERROR,
      CLASS, HISTORY, SCHEDULED, STARTED, COMPLETED, CREATED, UPDATED
    = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22
local call = redis.call
local clock = call('TIME')
local time = clock[1] * 1e6 + clock[2]
local now = ARGV[1] == '' and time or tonumber(ARGV[1])
local P

local function account(key) P = key .. ':' end
account(KEYS[1])

-- Writes are gathered, so that a batch costs one command of each kind; what is removed goes before what is added.
local removed, added, sums = {}, {}, {}

local function gather(into, command, key, a, b)
    local commands = into[command]
    if not commands then commands = {} into[command] = commands end
    local values = commands[key]
    if not values then values = {} commands[key] = values end
    values[#values + 1] = a
    if b ~= nil then values[#values + 1] = b end
end

local function send(gathered)
    for command, keys in pairs(gathered) do
        for key, values in pairs(keys) do
            for i = 1, #values, 4000 do call(command, key, unpack(values, i, math.min(i + 3999, #values))) end
        end
    end
end

local function flush()
    send(removed)
    send(added)
    for key, fields in pairs(sums) do
        for field, by in pairs(fields) do
            if by ~= 0 and call('HINCRBY', key, field, by) == 0 then call('HDEL', key, field) end
        end
    end
    removed, added, sums = {}, {}, {}
end

local function sum(key, field, by)
    local fields = sums[key]
    if not fields then fields = {} sums[key] = fields end
    fields[field] = (fields[field] or 0) + by
end

local function many(command, key, fields)
    local found = {}
    for i = 1, #fields, 4000 do
        for _, value in ipairs(call(command, key, unpack(fields, i, math.min(i + 3999, #fields)))) do
            found[#found + 1] = value
        end
    end
    return found
end

local function load(numbers)
    local found = many('HMGET', P .. 'tasks', numbers)
    for i, packed in ipairs(found) do found[i] = packed and cmsgpack.unpack(packed) end
    return found
end

local function number(x) return string.format('%.0f', x) end

local function what(t) return t[TYPE] .. '\0' .. t[ENTITY] .. '\0' .. t[OPERATION] end

local function lane(t) return string.format('%d:', 0 - t[PRIORITY]) .. t[QUEUE] end

local function troubled(t)
    return t[RUN] ~= '' and t[ERROR] ~= ''
        and (t[STATUS] == 'failed' or t[STATUS] == 'pending' or t[RESULT] == 'skipped')
end

local function tally(t, by)
    sum(P .. 'counts', t[STATUS] .. ':' .. t[QUEUE], by)
    if t[STATUS] == 'processing' then sum(P .. 'holders', t[WORKER], by) end
    if t[RUN] ~= '' then
        sum(P .. 'runs', t[RUN] .. ':' .. t[STATUS], by)
        if t[RESULT] ~= '' then sum(P .. 'runs', t[RUN] .. ':result:' .. t[RESULT], by) end
    end
end

-- A task leaves every index its status has put it in; `due` tells that it is known to be in its lane.
local function leave(t, due)
    tally(t, -1)
    local status = t[STATUS]
    if troubled(t) then gather(removed, 'ZREM', P .. 'run:' .. t[RUN], t[ID]) end
    if status == 'pending' then
        gather(removed, 'HDEL', P .. 'pending', what(t))
        gather(removed, 'ZREM', P .. 'wait:' .. t[QUEUE], t[ID])
        gather(removed, 'ZREM', P .. 'lane:' .. lane(t), t[ID])
        if not due then gather(removed, 'ZREM', P .. 'later', t[ID]) end
    elseif status == 'processing' then
        gather(removed, 'HDEL', P .. 'busy', what(t))
    else
        gather(removed, 'ZREM', P .. status, t[ID])
    end
end

local woken = {}

-- It enters those of its new status, and is written; a pending one is due or waits for its time.
local function enter(t, due)
    tally(t, 1)
    t[UPDATED] = time
    local status = t[STATUS]
    if troubled(t) then
        gather(added, 'ZADD', P .. 'run:' .. t[RUN], number(time + (status == 'failed' and 1e16 or 0)), t[ID])
    end
    if status == 'pending' then
        gather(added, 'HSET', P .. 'pending', what(t), t[ID])
        gather(added, 'ZADD', P .. 'wait:' .. t[QUEUE], number(t[SCHEDULED]), t[ID])
        if due then
            local name = lane(t)
            gather(added, 'ZADD', P .. 'lane:' .. name, t[ID], t[ID])
            if not woken[name] then
                woken[name] = true
                gather(added, 'SADD', P .. 'lanes', name)
            end
        else
            gather(added, 'ZADD', P .. 'later', number(t[SCHEDULED]), t[ID])
        end
    elseif status == 'processing' then
        gather(added, 'HSET', P .. 'busy', what(t), t[ID])
    else
        gather(added, 'ZADD', P .. status, number(t[COMPLETED]), t[ID])
    end
    gather(added, 'HSET', P .. 'tasks', t[ID], cmsgpack.pack(t))
end

-- Only workers that sleep have subscribed: a message nobody waits for costs nothing. It tells the lane.
local function wake()
    for name in pairs(woken) do
        local rank, queue = string.match(name, '^(.-):(.*)$')
        call('PUBLISH', 'queue:wake', queue .. '\t' .. rank .. '\t' .. string.match(P, '{(.*)}'))
    end
end

-- The history's last fifty: when, how it ended, in which attempt, by which error, on which worker and host.
local function remember(t, how, class, error, host)
    local history = t[HISTORY]
    if #history >= 50 then table.remove(history, 1) end
    history[#history + 1] = {number(time), how, t[ATTEMPTS], class, error, t[WORKER], host, number(t[STARTED])}
end

-- Pending again, unless a twin is, which then does the work.
local function put_back(t, due)
    t[WORKER] = 0
    if call('HEXISTS', P .. 'pending', what(t)) == 1 then
        t[STATUS], t[RESULT], t[COMPLETED] = 'completed', 'coalesced', time
    else
        t[STATUS] = 'pending'
    end
    enter(t, due)
end

local function whole(t)
    local row = {}
    for i, value in ipairs(t) do row[i] = value end
    for _, i in ipairs({SCHEDULED, STARTED, COMPLETED, CREATED, UPDATED}) do row[i] = number(row[i]) end
    return row
end

local function held(t, worker, attempts)
    return t and t[STATUS] == 'processing' and t[ATTEMPTS] == attempts and t[WORKER] == worker
end

-- name: enqueue
-- Adds tasks, given as [queue, type, entity, operation, priority, payload, run, max_attempts, time] of different things
-- to do; those with a pending twin join it. With outbox numbers (ARGV[3], one each) what came before is left alone.
-- What was moved here has a tenth element, which tells its past; a twin that was asked for later keeps its say.
local rows, new = cjson.decode(ARGV[2]), {attempts = 0, rescues = 0, error = '', class = '', history = {}, started = 0}
local notes = ARGV[3] ~= '' and cjson.decode(ARGV[3])
if notes then
    local fresh = {}
    for i, known in ipairs(many('ZMSCORE', P .. 'relayed', notes)) do
        if not known then
            fresh[#fresh + 1] = rows[i]
            gather(added, 'ZADD', P .. 'relayed', number(time), notes[i])
        end
    end
    rows = fresh
end
local things = {}
for i, row in ipairs(rows) do things[i] = row[2] .. '\0' .. row[3] .. '\0' .. row[4] end
local twins = #rows > 0 and many('HMGET', P .. 'pending', things) or {}
local fresh = 0
for i = 1, #rows do if not twins[i] then fresh = fresh + 1 end end
local last = fresh > 0 and call('INCRBY', P .. 'n', fresh) - fresh or 0
for i, row in ipairs(rows) do
    local at = row[9] == 0 and now or row[9]
    if not twins[i] then
        last = last + 1
        local past = row[10] or new
        enter({number(last), row[1], row[2], row[3], row[4], row[5], 'pending', row[6], past.attempts, row[8],
               past.rescues, row[7], 0, '', past.error, past.class, past.history, at, past.started, 0,
               past.created or time, time}, at <= now)
    else
        local t = load({twins[i]})[1]
        local due = at <= now or call('ZSCORE', P .. 'lane:' .. lane(t), t[ID])
        local newer = not row[10] or row[10].updated >= t[UPDATED]
        leave(t)
        t[PRIORITY] = math.max(t[PRIORITY], row[5])
        if newer then t[QUEUE], t[PAYLOAD] = row[1], row[6] end
        if row[7] ~= '' and (newer or t[RUN] == '') then t[RUN] = row[7] end
        t[SCHEDULED] = math.min(t[SCHEDULED], at)
        enter(t, due)
    end
end
flush()
wake()
return fresh

-- name: enqueue_one
-- `enqueue` for a single new task, which is what most producers have; 0 where a twin is pending, which is left to
-- `enqueue`. Without the common part, whose closures alone would cost as much as this; ARGV holds the task alone.
local call, key = redis.call, KEYS[1] .. ':'
local queue, kind, entity, operation, priority, payload, run, most, at = unpack(ARGV)
local n = call('INCR', key .. 'n')
local thing = kind .. '\0' .. entity .. '\0' .. operation
if call('HSETNX', key .. 'pending', thing, n) == 0 then return 0 end
local clock = call('TIME')
local time = clock[1] * 1e6 + clock[2]
local due = at == '0' and time or tonumber(at)
call('HSET', key .. 'tasks', n, cmsgpack.pack({
    tostring(n), queue, kind, entity, operation, tonumber(priority), 'pending', payload, 0, tonumber(most), 0, run, 0,
    '', '', '', {}, due, 0, 0, time, time}))
call('ZADD', key .. 'wait:' .. queue, due, n)
call('HINCRBY', key .. 'counts', 'pending:' .. queue, 1)
if run ~= '' then call('HINCRBY', key .. 'runs', run .. ':pending', 1) end
if due <= time then
    local rank = 0 - priority
    local lane = rank .. ':' .. queue
    call('ZADD', key .. 'lane:' .. lane, n, n)
    call('SADD', key .. 'lanes', lane)
    call('PUBLISH', 'queue:wake', queue .. '\t' .. rank .. '\t' .. string.sub(key, 8, -3) .. '\t' .. n)
else
    call('ZADD', key .. 'later', due, n)
end
return 1

-- name: look
-- The lanes that have something due, of each account; what has become due is let in on the way.
local found = {}
for i, key in ipairs(KEYS) do
    account(key)
    local due = call('ZRANGEBYSCORE', P .. 'later', '-inf', number(now), 'LIMIT', 0, 1000)
    if #due > 0 then
        for _, t in ipairs(load(due)) do
            if t then
                call('ZADD', P .. 'lane:' .. lane(t), t[ID], t[ID])
                call('SADD', P .. 'lanes', lane(t))
            end
        end
        call('ZREM', P .. 'later', unpack(due))
    end
    local lanes = {}
    for _, name in ipairs(call('SMEMBERS', P .. 'lanes')) do
        if call('EXISTS', P .. 'lane:' .. name) == 1 then
            lanes[#lanes + 1] = name
        else
            call('SREM', P .. 'lanes', name)
        end
    end
    found[i] = lanes
end
return cjson.encode(found)

-- name: claim
-- Takes the next batch of a lane: tasks of one kind, the oldest first. A task whose twin is being processed waits.
-- Nothing, not even an answer, once the word about the paused queues is another than the worker's (ARGV[6]).
local name, worker, limit, concurrency = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
if KEYS[2] and (call('GET', KEYS[2]) or '') ~= ARGV[6] then return false end
if concurrency and call('HLEN', P .. 'holders') - call('HEXISTS', P .. 'holders', worker) >= concurrency then
    return '[]'
end
local taken, from, most, head = {}, 0, limit, nil
repeat
    local numbers = call('ZRANGE', P .. 'lane:' .. name, from, from + limit - 1)
    if #numbers == 0 then return '[]' end
    local front, things = load(numbers), {}
    for i, t in ipairs(front) do things[i] = t and what(t) or '' end
    local busy = many('HMGET', P .. 'busy', things)
    for i, t in ipairs(front) do
        if t and not busy[i] then
            if not head then
                head = t
                most = math.max(1, math.floor(limit / 2 ^ math.max(0, t[RESCUES] - 2)))
            end
            if #taken < most and t[TYPE] == head[TYPE] and t[OPERATION] == head[OPERATION] then taken[#taken + 1] = t end
        end
    end
    from = from + limit
until head
local batch = {}
for i, t in ipairs(taken) do
    leave(t, true)
    t[STATUS], t[WORKER], t[ATTEMPTS] = 'processing', worker, t[ATTEMPTS] + 1
    t[STARTED], t[ERROR], t[CLASS] = time, '', ''
    enter(t)
    batch[i] = {t[ID], t[QUEUE], t[TYPE], t[ENTITY], t[OPERATION], t[PRIORITY], t[PAYLOAD], t[ATTEMPTS], t[MAX], t[RUN],
                (time - t[SCHEDULED]) / 1e6}
end
flush()
return cjson.encode(batch)

-- name: claim_told
-- `claim` for the one task a waiting worker has been told of, without the common part: ARGV is the task's number, its
-- rank and queue, the worker, the account's bound and the word. Says what `claim` would of it but for the queue, not as
-- JSON, and the time it waited in microseconds; nothing at all where it is not as simple, which is left to `claim`.
local call, key, n, rank, queue, worker = redis.call, KEYS[1] .. ':', ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if KEYS[2] and (call('GET', KEYS[2]) or '') ~= ARGV[6] then return false end
local packed = ARGV[5] == '' and call('HGET', key .. 'tasks', n)
if not packed then return {} end
local t = cmsgpack.unpack(packed)
local _, its, kind, entity, operation, priority, status, payload, attempts, most, rescues, run = unpack(t, 1, 12)
if status ~= 'pending' or its ~= queue or t[15] ~= '' or rescues > 0 then return {} end
local thing = kind .. '\0' .. entity .. '\0' .. operation
if call('HEXISTS', key .. 'busy', thing) == 1 or call('ZREM', key .. 'lane:' .. rank .. ':' .. queue, n) == 0 then
    return {}
end
local function sum(of, field, by)
    if call('HINCRBY', key .. of, field, by) == 0 then call('HDEL', key .. of, field) end
end
call('HDEL', key .. 'pending', thing)
call('ZREM', key .. 'wait:' .. queue, n)
sum('counts', 'pending:' .. queue, -1)
call('HSET', key .. 'busy', thing, n)
sum('counts', 'processing:' .. queue, 1)
sum('holders', worker, 1)
if run ~= '' then
    sum('runs', run .. ':pending', -1)
    sum('runs', run .. ':processing', 1)
end
local clock = call('TIME')
local time = clock[1] * 1e6 + clock[2]
t[7], t[9], t[13], t[16], t[19], t[22] = 'processing', attempts + 1, tonumber(worker), '', time, time
call('HSET', key .. 'tasks', n, cmsgpack.pack(t))
return {n, kind, entity, operation, priority, payload, attempts + 1, most, run, time - t[18]}

-- name: holdings
-- What a worker holds, as [number, attempts].
local worker, found = tonumber(ARGV[2]), {}
for _, t in ipairs(load(call('HVALS', P .. 'busy'))) do
    if t and t[WORKER] == worker then found[#found + 1] = {t[ID], t[ATTEMPTS]} end
end
return cjson.encode(found)

-- name: owned
-- Of these claims [number, attempts] of a worker, those that are still its own.
local claims, numbers, found = cjson.decode(ARGV[3]), {}, {}
for i, claim in ipairs(claims) do numbers[i] = claim[1] end
for i, t in ipairs(load(numbers)) do
    if held(t, tonumber(ARGV[2]), claims[i][2]) then found[#found + 1] = t[ID] end
end
return cjson.encode(found)

-- name: settle
-- Ends claims [number, attempts, way] of a worker, each in its way [verb, ...], those that are still its own; how many
-- went by which verb. ARGV[5] is the worker's host.
local worker, claims, ways, host = tonumber(ARGV[2]), cjson.decode(ARGV[3]), cjson.decode(ARGV[4]), ARGV[5]
local numbers, counts = {}, {}
for i, claim in ipairs(claims) do numbers[i] = claim[1] end
for i, t in ipairs(load(numbers)) do
    if held(t, worker, claims[i][2]) then
        local way = ways[claims[i][3]]
        local verb = way[1]
        counts[verb] = (counts[verb] or 0) + 1
        leave(t)
        if verb == 'complete' then
            t[STATUS], t[RESULT], t[ERROR], t[WORKER], t[COMPLETED] = 'completed', way[2], way[3], 0, time
            enter(t)
        elseif verb == 'fail' then
            remember(t, 'fail', way[3], way[2], host)
            t[STATUS], t[RESULT], t[ERROR], t[CLASS], t[WORKER], t[COMPLETED] = 'failed', 'failed', way[2], way[3], 0, time
            enter(t)
        elseif verb == 'retry' then
            remember(t, 'retry', way[3], way[2], host)
            t[ERROR], t[CLASS], t[SCHEDULED] = way[2], way[3], now + way[4] * 1e6
            put_back(t, way[4] <= 0)
        elseif verb == 'move' then
            gather(removed, 'HDEL', P .. 'tasks', t[ID])
        elseif verb == 'snooze' then
            t[ERROR], t[ATTEMPTS], t[SCHEDULED] = way[2], t[ATTEMPTS] - 1, now + way[3] * 1e6
            put_back(t, way[3] <= 0)
        else
            t[ATTEMPTS] = t[ATTEMPTS] - 1
            put_back(t, true)
        end
    end
end
flush()
wake()
return cjson.encode(counts)

-- name: rescue
-- Takes claims [number, attempts] of a dead worker back; a death is counted as a rescue, not as an attempt. What was
-- only to be moved (see `depart`) goes back as it was.
local worker, claims, host, longest = tonumber(ARGV[2]), cjson.decode(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local numbers, count = {}, 0
for i, claim in ipairs(claims) do numbers[i] = claim[1] end
for i, t in ipairs(load(numbers)) do
    if held(t, worker, claims[i][2]) then
        count = count + 1
        leave(t)
        if t[STARTED] == 0 then
            t[ATTEMPTS] = t[ATTEMPTS] - 1
            put_back(t, t[SCHEDULED] <= now)
        else
            local died = 'worker ' .. ARGV[2] .. ' died while it ran'
            remember(t, 'rescue', 'WorkerDied', died, host)
            t[ATTEMPTS], t[RESCUES], t[CLASS], t[SCHEDULED] = t[ATTEMPTS] - 1, t[RESCUES] + 1, 'WorkerDied', now
            t[ERROR] = died .. ', ' .. t[RESCUES] .. ' in all'
            if t[RESCUES] >= longest and call('HEXISTS', P .. 'pending', what(t)) == 0 then
                t[STATUS], t[RESULT], t[WORKER], t[COMPLETED] = 'failed', 'failed', 0, now
                enter(t)
            else
                put_back(t, true)
            end
        end
    end
end
flush()
wake()
return count

-- name: holders
-- Who holds how much, of each account: [worker, tasks, ...].
local found = {}
for i, key in ipairs(KEYS) do
    account(key)
    found[i] = call('HGETALL', P .. 'holders')
end
return cjson.encode(found)

-- name: prune
-- Deletes ended tasks past their keeping time, a bounded number; how many.
local count = 0
for i, status in ipairs({'completed', 'failed'}) do
    local numbers = call('ZRANGEBYSCORE', P .. status, '-inf', '(' .. ARGV[i + 1], 'LIMIT', 0, 1000)
    if #numbers > 0 then
        for _, t in ipairs(load(numbers)) do
            if t then leave(t) end
        end
        call('HDEL', P .. 'tasks', unpack(numbers))
        count = count + #numbers
    end
end
call('ZREMRANGEBYSCORE', P .. 'relayed', '-inf', number(time - 7 * 86400e6))
flush()
return count

-- name: stats
-- Tasks by status and queue, of each account, and since when the oldest due one has waited, in seconds.
local found = {}
for i, key in ipairs(KEYS) do
    account(key)
    local rows, counts = {}, call('HGETALL', P .. 'counts')
    for k = 1, #counts, 2 do
        local status, queue = string.match(counts[k], '^(%l+):(.*)$')
        local oldest = ''
        if status == 'pending' then
            local first = call('ZRANGE', P .. 'wait:' .. queue, 0, 0, 'WITHSCORES')
            if first[2] and tonumber(first[2]) <= now then oldest = (now - first[2]) / 1e6 end
        end
        rows[#rows + 1] = {queue, status, tonumber(counts[k + 1]), oldest}
    end
    found[i] = rows
end
return cjson.encode(found)

-- name: peek
-- The newest tasks of a status, of each account; of pending ones those enqueued last.
local status, limit, found = ARGV[2], tonumber(ARGV[3]), {}
for i, key in ipairs(KEYS) do
    account(key)
    local numbers = {}
    local function newest(of)
        for _, n in ipairs(call('ZREVRANGE', of, 0, limit - 1)) do numbers[#numbers + 1] = n end
    end
    if status == 'processing' then
        numbers = call('HVALS', P .. 'busy')
    elseif status == 'pending' then
        for _, name in ipairs(call('SMEMBERS', P .. 'lanes')) do newest(P .. 'lane:' .. name) end
        newest(P .. 'later')
    else
        newest(P .. status)
    end
    local rows = {}
    for _, t in ipairs(load(numbers)) do
        if t then rows[#rows + 1] = whole(t) end
    end
    table.sort(rows, function(a, b)
        if a[UPDATED] ~= b[UPDATED] then return a[UPDATED] > b[UPDATED] end
        return tonumber(a[ID]) > tonumber(b[ID])
    end)
    for k = limit + 1, #rows do rows[k] = nil end
    found[i] = rows
end
return cjson.encode(found)

-- name: find
-- Tasks by their numbers, whole.
local rows = {}
for _, t in ipairs(load(cjson.decode(ARGV[2]))) do
    if t then rows[#rows + 1] = whole(t) end
end
return cjson.encode(rows)

-- name: failed
-- Numbers of the failed tasks since then.
return call('ZRANGEBYSCORE', P .. 'failed', ARGV[2], '+inf')

-- name: retry_failed
-- Gives failed tasks a new set of attempts, the newest first, except where the same thing is pending already. What was
-- cancelled needs to be named (ARGV[4]), by number or by its class (ARGV[3]).
local class, named, count, seen = ARGV[3], ARGV[4] == '1', 0, {}
for _, t in ipairs(load(cjson.decode(ARGV[2]))) do
    if t and t[STATUS] == 'failed' and (class == '' or t[CLASS] == class)
        and (named or class ~= '' or t[RESULT] ~= 'cancelled')
        and not seen[what(t)] and call('HEXISTS', P .. 'pending', what(t)) == 0 then
        seen[what(t)] = true
        count = count + 1
        leave(t)
        t[STATUS], t[ATTEMPTS], t[RESCUES], t[RESULT], t[COMPLETED], t[SCHEDULED] = 'pending', 0, 0, '', 0, now
        enter(t, true)
    end
end
flush()
wake()
return count

-- name: pending
-- A page of what is pending, [number, queue, type] each, and where the next one begins.
local page = call('HSCAN', P .. 'pending', ARGV[2], 'COUNT', 1000)
local numbers, rows = {}, {}
for k = 2, #page[2], 2 do numbers[#numbers + 1] = page[2][k] end
if #numbers > 0 then
    for _, t in ipairs(load(numbers)) do
        if t then rows[#rows + 1] = {t[ID], t[QUEUE], t[TYPE]} end
    end
end
return cjson.encode({page[1], rows})

-- name: processing
-- What is being processed, [number, queue] each, of each account.
local found = {}
for i, key in ipairs(KEYS) do
    account(key)
    local rows = {}
    for _, t in ipairs(load(call('HVALS', P .. 'busy'))) do
        if t then rows[#rows + 1] = {t[ID], t[QUEUE]} end
    end
    found[i] = rows
end
return cjson.encode(found)

-- name: cancel
-- Ends pending tasks on an operator's word.
local count = 0
for _, t in ipairs(load(cjson.decode(ARGV[2]))) do
    if t and t[STATUS] == 'pending' then
        count = count + 1
        leave(t)
        remember(t, 'cancel', 'Cancelled', ARGV[3], '')
        t[STATUS], t[RESULT], t[ERROR], t[CLASS], t[COMPLETED] = 'failed', 'cancelled', ARGV[3], 'Cancelled', time
        enter(t)
    end
end
flush()
return count

-- name: drop
-- Deletes pending tasks of an account that is no longer known.
for _, t in ipairs(load(cjson.decode(ARGV[2]))) do
    if t and t[STATUS] == 'pending' then
        leave(t)
        gather(removed, 'HDEL', P .. 'tasks', t[ID])
    end
end
flush()
return 0

-- name: reroute
-- Moves pending tasks to another queue.
local count = 0
for _, t in ipairs(load(cjson.decode(ARGV[2]))) do
    if t and t[STATUS] == 'pending' and t[QUEUE] ~= ARGV[3] then
        count = count + 1
        local due = call('ZSCORE', P .. 'lane:' .. lane(t), t[ID])
        leave(t)
        t[QUEUE] = ARGV[3]
        enter(t, due)
    end
end
flush()
wake()
return count

-- name: depart
-- Puts pending tasks, due or not, into the hands of a worker that moves them elsewhere; whole, as they waited. Not those
-- whose twin is being processed: it may come back.
local worker, rows, things = tonumber(ARGV[2]), {}, {}
local waiting = load(cjson.decode(ARGV[3]))
for i, t in ipairs(waiting) do things[i] = t and what(t) or '' end
local busy = many('HMGET', P .. 'busy', things)
for i, t in ipairs(waiting) do
    if t and t[STATUS] == 'pending' and not busy[i] then
        rows[#rows + 1] = whole(t)
        leave(t)
        t[STATUS], t[WORKER], t[ATTEMPTS], t[STARTED] = 'processing', worker, t[ATTEMPTS] + 1, 0
        enter(t)
    end
end
flush()
return cjson.encode(rows)

-- name: progress
-- A run's tasks by status and result, of each account.
local found = {}
for i, key in ipairs(KEYS) do
    account(key)
    local fields = {}
    for k = 3, #ARGV do fields[k - 2] = ARGV[2] .. ':' .. ARGV[k] end
    local counts = call('HMGET', P .. 'runs', unpack(fields))
    for k, value in ipairs(counts) do counts[k] = tonumber(value or 0) end
    found[i] = counts
end
return cjson.encode(found)

-- name: open
-- For each of these runs, how many of its tasks are being processed and pending, of each account.
local fields, found = {}, {}
for _, run in ipairs(cjson.decode(ARGV[2])) do
    fields[#fields + 1] = run .. ':processing'
    fields[#fields + 1] = run .. ':pending'
end
for i, key in ipairs(KEYS) do
    account(key)
    local counts, pairs_ = many('HMGET', P .. 'runs', fields), {}
    for k = 1, #counts, 2 do pairs_[(k + 1) / 2] = {tonumber(counts[k] or 0), tonumber(counts[k + 1] or 0)} end
    found[i] = pairs_
end
return cjson.encode(found)

-- name: problems
-- What went wrong or was left out in a run, of each account, the newest first.
local found = {}
for i, key in ipairs(KEYS) do
    account(key)
    local rows, numbers = {}, call('ZREVRANGE', P .. 'run:' .. ARGV[2], 0, ARGV[3] - 1)
    for _, t in ipairs(load(numbers)) do
        if t then rows[#rows + 1] = whole(t) end
    end
    found[i] = rows
end
return cjson.encode(found)

-- name: twins
-- Of these things to do [type, entity, operation], those that are pending.
local things, keys, found = cjson.decode(ARGV[2]), {}, {}
for i, thing in ipairs(things) do keys[i] = table.concat(thing, '\0') end
for i, there in ipairs(many('HMGET', P .. 'pending', keys)) do
    if there then found[#found + 1] = things[i] end
end
return cjson.encode(found)

-- name: forget
-- These outbox numbers are gone from the outbox.
local notes = cjson.decode(ARGV[2])
for i = 1, #notes, 4000 do call('ZREM', P .. 'relayed', unpack(notes, i, math.min(i + 3999, #notes))) end
return 0

-- name: word
-- The word about the paused queues, its only key, or a new one for it.
if ARGV[1] ~= '' then redis.call('SET', KEYS[1], ARGV[1]) end
return redis.call('GET', KEYS[1])
