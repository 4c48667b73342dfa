#!lua
-- What is done with parcels, each of it in one step. All keys are in one slot.
--
-- KEYS  1 lines (sorted set: line → when its first parcel is due)   2 bodies (hash: parcel → body)
--       3 attempts (hash: parcel → how often it was handed out)      4 causes (hash: parcel → why it failed last)
--       5 dead letters (sorted set: parcel → when it died)
--       A line is a sorted set of its own: parcel → when it is due. Its key is ARGV[2] and its name.
-- ARGV  1 what is done   2 what lines' keys begin with   then what it takes
local call = redis.call
local lines, bodies, attempts, causes, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local what = ARGV[1]

local function key_of(line)
    return ARGV[2] .. line
end

-- Notes when the first parcel of a line is due.
local function tidy(line)
    local first = call('ZRANGE', key_of(line), 0, 0, 'WITHSCORES')
    if first[1] then
        call('ZADD', lines, first[2], line)
    else
        call('ZREM', lines, line)
    end
end

local function forget(parcel)
    call('HDEL', bodies, parcel)
    call('HDEL', attempts, parcel)
    call('HDEL', causes, parcel)
end

-- Whether it was not handed out again since it was for the nth time.
local function is_held(line, parcel, n)
    return (call('HGET', attempts, parcel) or '0') == n and call('ZSCORE', key_of(line), parcel)
end

-- 3 the most in a line, then for each: parcel, line, due, body. Answers how many were dropped.
if what == 'put' then
    local dropped = 0
    for at = 4, #ARGV, 4 do
        local parcel, line = ARGV[at], ARGV[at + 1]
        if call('HEXISTS', bodies, parcel) == 0 then
            if call('ZCARD', key_of(line)) >= tonumber(ARGV[3]) then
                dropped = dropped + 1
            else
                call('HSET', bodies, parcel, ARGV[at + 3])
                call('ZADD', key_of(line), ARGV[at + 2], parcel)
                call('ZADD', lines, 'LT', ARGV[at + 2], line)
            end
        end
    end
    return dropped
end

-- 3 now, 4 due again, 5 how many, 6 how many of a line, then for each line that is busy: line, how many of it are handed
-- out. Answers parcel, line, attempts and body of each.
if what == 'claim' then
    local busy, count = {}, 0
    for at = 7, #ARGV, 2 do
        busy[ARGV[at]] = tonumber(ARGV[at + 1])
        count = count + 1
    end
    local room, claimed = tonumber(ARGV[5]), {}
    for _, line in ipairs(call('ZRANGEBYSCORE', lines, '-inf', ARGV[3], 'LIMIT', 0, room + count)) do
        local share = math.min(room, tonumber(ARGV[6]) - (busy[line] or 0))
        if share > 0 then
            local due = call('ZRANGEBYSCORE', key_of(line), '-inf', ARGV[3], 'LIMIT', 0, share)
            for _, parcel in ipairs(due) do
                call('ZADD', key_of(line), ARGV[4], parcel)
                table.insert(claimed, parcel)
                table.insert(claimed, line)
                table.insert(claimed, call('HINCRBY', attempts, parcel, 1))
                table.insert(claimed, call('HGET', bodies, parcel) or '')
                room = room - 1
            end
            tidy(line)
        end
    end
    return claimed
end

-- 3 parcel, 4 line.
if what == 'remove' then
    if call('ZREM', key_of(ARGV[4]), ARGV[3]) == 1 then
        forget(ARGV[3])
        tidy(ARGV[4])
    end
    return 0
end

-- 3 parcel, 4 line, 5 attempts, 6 cause, 7 due.
if what == 'postpone' then
    if is_held(ARGV[4], ARGV[3], ARGV[5]) then
        call('ZADD', key_of(ARGV[4]), ARGV[7], ARGV[3])
        call('HSET', causes, ARGV[3], ARGV[6])
        tidy(ARGV[4])
    end
    return 0
end

-- 3 parcel, 4 line, 5 attempts, 6 cause, 7 now.
if what == 'bury' then
    if is_held(ARGV[4], ARGV[3], ARGV[5]) then
        call('ZREM', key_of(ARGV[4]), ARGV[3])
        call('ZADD', dead, ARGV[7], ARGV[3])
        call('HSET', causes, ARGV[3], ARGV[6])
        tidy(ARGV[4])
    end
    return 0
end

-- 3 parcel, 4 line, 5 now. Answers whether it was a dead letter.
if what == 'revive' then
    if call('ZREM', dead, ARGV[3]) == 0 then
        return 0
    end
    call('HDEL', attempts, ARGV[3])
    call('ZADD', key_of(ARGV[4]), ARGV[5], ARGV[3])
    tidy(ARGV[4])
    return 1
end

-- 3 how many. Answers parcel, body, attempts, cause and death of each.
if what == 'dead' then
    local letters = {}
    for _, parcel in ipairs(call('ZREVRANGE', dead, 0, ARGV[3] - 1)) do
        table.insert(letters, parcel)
        table.insert(letters, call('HGET', bodies, parcel) or '')
        table.insert(letters, call('HGET', attempts, parcel) or '0')
        table.insert(letters, call('HGET', causes, parcel) or '')
        table.insert(letters, call('ZSCORE', dead, parcel))
    end
    return letters
end

-- 3 died before, 4 how many of those, and of the oldest of more than there may be, 5 how many there may be.
if what == 'drop' then
    local function drop(letters)
        for _, parcel in ipairs(letters) do
            call('ZREM', dead, parcel)
            forget(parcel)
        end
    end
    drop(call('ZRANGEBYSCORE', dead, '-inf', '(' .. ARGV[3], 'LIMIT', 0, ARGV[4]))
    local excess = math.min(call('ZCARD', dead) - ARGV[5], tonumber(ARGV[4]))
    if excess > 0 then
        drop(call('ZRANGE', dead, 0, excess - 1))
    end
    return 0
end

-- Answers parcel, line, due and body of those that are no dead letters.
if what == 'waiting' then
    local waiting = {}
    for _, line in ipairs(call('ZRANGE', lines, 0, -1)) do
        local parcels = call('ZRANGE', key_of(line), 0, -1, 'WITHSCORES')
        for at = 1, #parcels, 2 do
            table.insert(waiting, parcels[at])
            table.insert(waiting, line)
            table.insert(waiting, parcels[at + 1])
            table.insert(waiting, call('HGET', bodies, parcels[at]) or '')
        end
    end
    return waiting
end

-- Answers how many there are, and how many of them are dead letters.
if what == 'count' then
    return { call('HLEN', bodies), call('ZCARD', dead) }
end

return redis.error_reply('nothing is known of ' .. what)
