#!lua
-- Commits changes to one account, all or none, if the account is at the version that they were decided on. Sent again,
-- it is carried out once. All keys are of one partition, and so in one slot.
--
-- KEYS  1 account (hash: v version and last entry, b body)      5 its sessions, by the time of their hold
--       2 its log (stream, entry n has id n-0)   6 its open sessions
--       3 the partition's events (stream)        7 the partition's gateways that have open sessions
--       4 its commands (hash: id → log entry)    8 the partition's accounts
--       9 its usage by the hour (hash: start → figures)   10 by the month
--       then for each session: its record, and the open sessions of its gateway
-- ARGV  1 version expected   2 version afterwards   3 body   4 id of the batch's last log entry, or 0-0
--       5 account's id   6 number of sessions   7 number of log entries   8 number of events   9 name of the batch
--       then for each session: how it comes (new: no session has its id; again: in the place of another; update),
--            whether it is open (1 or 0), id, time of the hold, gateway, body
--       then for each log entry: id, command or nothing, body
--       then for each event: body
--       then for each use: the hour's start, the first hour that is kept, the month's start, nine figures
-- Answers {0} done, {1, version, body, name of the batch that wrote the log entry ARGV[4]} conflict, {2, n} the nth session is taken, {3, n} the nth log entry's
-- command is.
local call = redis.call
local account, log, events, commands = KEYS[1], KEYS[2], KEYS[3], KEYS[4]

local version = call('HGET', account, 'v') or '0'
if version ~= ARGV[1] then
    local entry = call('XRANGE', log, ARGV[4], ARGV[4])[1]
    return {1, version, call('HGET', account, 'b'), entry and entry[2][4]}
end
if version == ARGV[2] then
    return {0}
end

local sessions, first_entry = tonumber(ARGV[6]), 10 + 6 * ARGV[6]
local entries, first_event = tonumber(ARGV[7]), first_entry + 3 * ARGV[7]
for n = 1, sessions do
    if ARGV[4 + 6 * n] == 'new' and call('EXISTS', KEYS[9 + 2 * n]) == 1 then
        return {2, n}
    end
end
for n = 1, entries do
    local command = ARGV[first_entry + 3 * n - 2]
    if command ~= '' and call('HEXISTS', commands, command) == 1 then
        return {3, n}
    end
end

-- From here on nothing is refused.
call('HSET', account, 'v', ARGV[2], 'b', ARGV[3])
if version == '0' then
    call('SADD', KEYS[8], ARGV[5])
end
for n = 1, sessions do
    local at = 4 + 6 * n
    local how, open, id, held_at, gateway = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
    local of_gateway, name = KEYS[10 + 2 * n], ARGV[5] .. ':' .. id
    call('SET', KEYS[9 + 2 * n], ARGV[at + 5])
    if how ~= 'update' then
        call('ZADD', KEYS[5], held_at, id)
    end
    if open == '0' then
        call('SREM', KEYS[6], id)
        call('SREM', of_gateway, name)
        if call('EXISTS', of_gateway) == 0 then
            call('SREM', KEYS[7], gateway)
        end
    elseif how ~= 'update' then
        call('SADD', KEYS[6], id)
        call('SADD', of_gateway, name)
        call('SADD', KEYS[7], gateway)
    end
end
for at = first_entry, first_event - 1, 3 do
    call('XADD', log, ARGV[at], 'e', ARGV[at + 2], 'n', ARGV[9])
    if ARGV[at + 1] ~= '' then
        call('HSET', commands, ARGV[at + 1], ARGV[at + 2])
    end
end
local first_use = first_event + ARGV[8]
for at = first_event, first_use - 1 do
    call('XADD', events, '*', 'e', ARGV[at])
end

-- Adds the nine figures from ARGV[first] on to those of a period. The first use of a period drops those before oldest.
local function use(key, start, oldest, first)
    local sums, row = {}, call('HGET', key, start)
    for n = 1, 9 do
        sums[n] = tonumber(ARGV[first + n - 1])
    end
    if row then
        local n = 0
        for figure in string.gmatch(row, '%d+') do
            n = n + 1
            sums[n] = sums[n] + figure
        end
    else
        for _, before in ipairs(call('HKEYS', key)) do
            if tonumber(before) < oldest then
                call('HDEL', key, before)
            end
        end
    end
    call('HSET', key, start, string.format(string.rep('%.0f ', 9), unpack(sums)))
end
for at = first_use, #ARGV, 12 do
    use(KEYS[9], ARGV[at], tonumber(ARGV[at + 1]), at + 3)
    use(KEYS[10], ARGV[at + 2], 0, at + 3)
end
return {0}
